//! What a command asks for, or else a container's annotation, or else the configuration.

/// A setting that may be asked for, and that has a default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice<T> {
    /// What the command line says, which counts before all else.
    pub asked: Option<T>,
    /// What the configuration says, which counts after all else.
    pub default: T,
}

impl<T> Choice<T> {
    /// The configuration's, as long as nothing else is asked for.
    pub fn by_default(default: T) -> Self {
        Self { asked: None, default }
    }

    /// The same, with what the command line says, if it says something.
    pub fn asked(self, asked: Option<T>) -> Self {
        Self { asked, ..self }
    }

    /// What counts for a container whose annotation says `annotated`.
    pub fn or_annotated(&self, annotated: Option<T>) -> T
    where
        T: Clone,
    {
        self.asked.clone().or(annotated).unwrap_or_else(|| self.default.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_goes_first_and_the_configuration_last() {
        let choice = Choice::by_default(1);
        assert_eq!((choice.or_annotated(None), choice.or_annotated(Some(2))), (1, 2));
        assert_eq!(choice.asked(Some(3)).or_annotated(Some(2)), 3);
    }
}
