//! Trees, drawn with lines.

/// A line of a tree, and what is below it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// What the line says.
    pub text: String,
    /// What is below it.
    pub below: Vec<Node>,
}

impl Node {
    /// A line with nothing below it.
    pub fn leaf(text: String) -> Self {
        Self { text, below: Vec::new() }
    }

    /// Prints it and what is below it.
    pub fn print(&self) {
        self.lines().iter().for_each(|line| super::line(line));
    }

    fn lines(&self) -> Vec<String> {
        let mut lines = vec![self.text.clone()];
        let last = self.below.len().saturating_sub(1);
        for (at, node) in self.below.iter().enumerate() {
            let (first, others) =
                if at == last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
            let below = node.lines().into_iter().enumerate();
            lines.extend(below.map(|(at, line)| match at {
                0 => format!("{first}{line}"),
                _ => format!("{others}{line}"),
            }));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_lead_to_what_is_below() {
        let leaf = |text: &str| Node::leaf(text.to_owned());
        let inner = Node { text: "b".to_owned(), below: vec![leaf("c"), leaf("d")] };
        let tree = Node { text: "a".to_owned(), below: vec![inner.clone(), leaf("e"), inner] };
        let expected = "a\n├─ b\n│  ├─ c\n│  └─ d\n├─ e\n└─ b\n   ├─ c\n   └─ d";
        assert_eq!(tree.lines().join("\n"), expected);
    }
}
