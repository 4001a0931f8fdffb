//! The protobuf wire format, as the encoding guide of Protocol Buffers describes it.
//!
//! A message is kept as the list of its fields with their bytes as they stand in the file, so
//! that what is not understood, and how it was encoded, survives a rewrite.

use std::borrow::Cow;

/// Fields in one message. The largest that CRIU writes is a process' memory map, with one field
/// for each mapping.
const MAX_FIELDS: usize = 1 << 20;

/// Why bytes are no message, or lack what is asked of them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadMessage {
    /// It ends inside a field.
    #[error("it ends inside a field, at byte {0}")]
    Truncated(usize),
    /// A number with more than 64 bits.
    #[error("the number at byte {0} is longer than 64 bits")]
    LongNumber(usize),
    /// A field number of zero or above 2^29, or a wire type that does not exist or that CRIU
    /// does not use (groups).
    #[error("the key at byte {0} is none of a field")]
    BadKey(usize),
    /// More fields than any image has.
    #[error("it has more than {MAX_FIELDS} fields")]
    TooManyFields,
    /// A field that CRIU always writes is not there, or is of another type.
    #[error("field {number} ({name}) is missing or of another type")]
    Missing {
        /// The field's number.
        number: u32,
        /// Its name.
        name: &'static str,
    },
    /// A number is larger than its type.
    #[error("field {number} ({name}) is out of range")]
    OutOfRange {
        /// The field's number.
        number: u32,
        /// Its name.
        name: &'static str,
    },
}

/// How a field's value is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireType {
    /// A number of variable length.
    Varint,
    /// Eight bytes.
    Fixed64,
    /// A length and so many bytes: text, a message, packed numbers.
    Bytes,
    /// Four bytes.
    Fixed32,
}

/// One field of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    number: u32,
    wire: WireType,
    /// Key, length and value.
    raw: Cow<'a, [u8]>,
    /// Where in `raw` the value begins.
    value: usize,
}

impl Field<'_> {
    /// The field's number.
    pub fn number(&self) -> u32 {
        self.number
    }

    fn value(&self) -> &[u8] {
        &self.raw[self.value..]
    }

    fn as_number(&self) -> Option<u64> {
        match self.wire {
            WireType::Varint => varint(self.value(), 0).ok().map(|(number, _)| number),
            WireType::Fixed64 => self.value().try_into().ok().map(u64::from_le_bytes),
            WireType::Fixed32 => self.value().try_into().ok().map(|b| u32::from_le_bytes(b).into()),
            WireType::Bytes => None,
        }
    }
}

/// A message: its fields in the order of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message<'a> {
    fields: Vec<Field<'a>>,
}

impl<'a> Message<'a> {
    /// Splits bytes into fields, without copying them.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BadMessage> {
        let mut fields = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            if fields.len() == MAX_FIELDS {
                return Err(BadMessage::TooManyFields);
            }
            let (field, end) = field_at(bytes, at)?;
            fields.push(field);
            at = end;
        }
        Ok(Self { fields })
    }

    /// The bytes of the message.
    pub fn encode(&self) -> Vec<u8> {
        self.fields.iter().flat_map(|field| field.raw.iter().copied()).collect()
    }

    /// All its fields.
    pub fn fields(&self) -> &[Field<'a>] {
        &self.fields
    }

    /// The field of that number; of several the last, as protobuf wants it.
    fn last(&self, number: u32) -> Option<&Field<'a>> {
        self.fields.iter().rev().find(|field| field.number == number)
    }

    /// A number, if the field is there.
    pub fn number(&self, number: u32) -> Option<u64> {
        self.last(number)?.as_number()
    }

    /// A number of at most 32 bits, if the field is there.
    pub fn u32(&self, number: u32, name: &'static str) -> Result<Option<u32>, BadMessage> {
        self.number(number)
            .map(|value| value.try_into().map_err(|_| BadMessage::OutOfRange { number, name }))
            .transpose()
    }

    /// A number of at most 32 bits that has to be there.
    pub fn need_u32(&self, number: u32, name: &'static str) -> Result<u32, BadMessage> {
        self.u32(number, name)?.ok_or(BadMessage::Missing { number, name })
    }

    /// A number that has to be there.
    pub fn need_u64(&self, number: u32, name: &'static str) -> Result<u64, BadMessage> {
        self.number(number).ok_or(BadMessage::Missing { number, name })
    }

    /// A signed number of the protobuf type `int32`, which is sent as 64 bits.
    pub fn need_i32(&self, number: u32, name: &'static str) -> Result<i32, BadMessage> {
        i32::try_from(self.need_u64(number, name)? as i64)
            .map_err(|_| BadMessage::OutOfRange { number, name })
    }

    /// A signed number of the protobuf type `sint32` (zigzag), if the field is there.
    pub fn sint32(&self, number: u32, name: &'static str) -> Result<Option<i32>, BadMessage> {
        let value = self.u32(number, name)?;
        Ok(value.map(|value| (value >> 1) as i32 ^ -((value & 1) as i32)))
    }

    /// Whether the field is there and is true.
    pub fn flag(&self, number: u32) -> bool {
        self.number(number).is_some_and(|value| value != 0)
    }

    /// The bytes of a text, if the field is there.
    pub fn bytes(&self, number: u32) -> Option<&[u8]> {
        self.last(number).filter(|field| field.wire == WireType::Bytes).map(Field::value)
    }

    /// The bytes of a text that has to be there.
    pub fn need_bytes(&self, number: u32, name: &'static str) -> Result<&[u8], BadMessage> {
        self.bytes(number).ok_or(BadMessage::Missing { number, name })
    }

    /// A message inside this one, if the field is there.
    pub fn message(&self, number: u32) -> Result<Option<Message<'_>>, BadMessage> {
        self.bytes(number).map(Message::parse).transpose()
    }

    /// A message inside this one that has to be there.
    pub fn need_message(&self, number: u32, name: &'static str) -> Result<Message<'_>, BadMessage> {
        self.message(number)?.ok_or(BadMessage::Missing { number, name })
    }

    /// Every message of a repeated field.
    pub fn messages(&self, number: u32) -> impl Iterator<Item = Result<Message<'_>, BadMessage>> {
        self.fields
            .iter()
            .filter(move |field| field.number == number && field.wire == WireType::Bytes)
            .map(|field| Message::parse(field.value()))
    }

    /// Every number of a repeated field, packed or not.
    pub fn numbers(&self, number: u32) -> Result<Vec<u64>, BadMessage> {
        let mut numbers = Vec::new();
        for field in self.fields.iter().filter(|field| field.number == number) {
            match field.as_number() {
                Some(value) => numbers.push(value),
                None => unpack(field.value(), &mut numbers)?,
            }
        }
        Ok(numbers)
    }

    /// Gives a field a new number: in the place of the last of its occurrences, else at the end.
    pub fn set_number(&mut self, number: u32, value: u64) {
        let field = Field::of_number(number, value);
        match self.fields.iter_mut().rev().find(|field| field.number == number) {
            Some(old) => *old = field,
            None => self.fields.push(field),
        }
    }

    /// The message without the fields of that number.
    pub fn without(&self, number: u32) -> Self {
        let others = self.fields.iter().filter(|field| field.number != number);
        Self { fields: others.cloned().collect() }
    }

    /// Adds a number at the end: one more of a repeated field.
    pub fn push_number(&mut self, number: u32, value: u64) {
        self.fields.push(Field::of_number(number, value));
    }

    /// Adds a text or a message at the end.
    pub fn push_bytes(&mut self, number: u32, value: &[u8]) {
        let mut raw = Vec::with_capacity(value.len() + 8);
        put_varint(u64::from(number) << 3 | 2, &mut raw);
        put_varint(value.len() as u64, &mut raw);
        let at = raw.len();
        raw.extend_from_slice(value);
        self.fields.push(Field { number, wire: WireType::Bytes, raw: Cow::Owned(raw), value: at });
    }
}

impl Field<'_> {
    fn of_number(number: u32, value: u64) -> Self {
        let mut raw = Vec::with_capacity(12);
        put_varint(u64::from(number) << 3, &mut raw);
        let at = raw.len();
        put_varint(value, &mut raw);
        Field { number, wire: WireType::Varint, raw: Cow::Owned(raw), value: at }
    }
}

/// Reads the field that begins at `at`, and where the next one does.
fn field_at(bytes: &[u8], at: usize) -> Result<(Field<'_>, usize), BadMessage> {
    let (key, after_key) = varint(bytes, at)?;
    let number = u32::try_from(key >> 3).map_err(|_| BadMessage::BadKey(at))?;
    if number == 0 || number >= 1 << 29 {
        return Err(BadMessage::BadKey(at));
    }
    let (wire, value, length) = match key & 7 {
        0 => {
            let (_, end) = varint(bytes, after_key)?;
            (WireType::Varint, after_key, end - after_key)
        }
        1 => (WireType::Fixed64, after_key, 8),
        2 => {
            let (length, value) = varint(bytes, after_key)?;
            let length = usize::try_from(length).map_err(|_| BadMessage::Truncated(at))?;
            (WireType::Bytes, value, length)
        }
        5 => (WireType::Fixed32, after_key, 4),
        _ => return Err(BadMessage::BadKey(at)),
    };
    let end = value.checked_add(length).filter(|end| *end <= bytes.len());
    let end = end.ok_or(BadMessage::Truncated(at))?;
    let raw = Cow::Borrowed(&bytes[at..end]);
    Ok((Field { number, wire, raw, value: value - at }, end))
}

/// Reads a number of variable length, and where it ends.
fn varint(bytes: &[u8], start: usize) -> Result<(u64, usize), BadMessage> {
    let mut number = 0u64;
    for (position, byte) in bytes.iter().skip(start).take(10).enumerate() {
        if position == 9 && *byte > 1 {
            break;
        }
        number |= u64::from(byte & 0x7f) << (7 * position);
        if byte & 0x80 == 0 {
            return Ok((number, start + position + 1));
        }
    }
    Err(if bytes.len().saturating_sub(start) < 10 {
        BadMessage::Truncated(start)
    } else {
        BadMessage::LongNumber(start)
    })
}

fn unpack(bytes: &[u8], numbers: &mut Vec<u64>) -> Result<(), BadMessage> {
    let mut at = 0;
    while at < bytes.len() {
        if numbers.len() >= MAX_FIELDS {
            return Err(BadMessage::TooManyFields);
        }
        let (number, end) = varint(bytes, at)?;
        numbers.push(number);
        at = end;
    }
    Ok(())
}

fn put_varint(mut number: u64, raw: &mut Vec<u8>) {
    while number >= 0x80 {
        raw.push(number as u8 | 0x80);
        number >>= 7;
    }
    raw.push(number as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// One field, well-formed, of any number and any type.
    fn any_field() -> impl Strategy<Value = Vec<u8>> {
        let body = prop_oneof![
            any::<u64>().prop_map(|number| {
                let mut raw = Vec::new();
                put_varint(number, &mut raw);
                (0, raw)
            }),
            any::<[u8; 8]>().prop_map(|raw| (1, raw.to_vec())),
            any::<Vec<u8>>().prop_map(|bytes| {
                let mut raw = Vec::new();
                put_varint(bytes.len() as u64, &mut raw);
                raw.extend(bytes);
                (2, raw)
            }),
            any::<[u8; 4]>().prop_map(|raw| (5, raw.to_vec())),
        ];
        (1u64..1 << 29, body).prop_map(|(number, (wire, body))| {
            let mut raw = Vec::new();
            put_varint(number << 3 | wire, &mut raw);
            raw.extend(body);
            raw
        })
    }

    proptest! {
        #[test]
        fn what_is_not_changed_stays_as_it_is(fields in prop::collection::vec(any_field(), 0..20)) {
            let bytes = fields.concat();
            prop_assert_eq!(Message::parse(&bytes).unwrap().encode(), bytes);
        }

        #[test]
        fn any_bytes_are_a_message_or_an_error(bytes: Vec<u8>) {
            if let Ok(message) = Message::parse(&bytes) {
                prop_assert_eq!(message.encode(), bytes.clone());
                for number in 0..20 {
                    let _ = (message.number(number), message.numbers(number), message.bytes(number));
                    let _ = message.messages(number).count();
                }
            }
        }

        #[test]
        fn numbers_come_back(number in 1u32..1 << 29, value: u64) {
            let mut message = Message::default();
            message.set_number(number, value);
            let bytes = message.encode();
            prop_assert_eq!(Message::parse(&bytes).unwrap().number(number), Some(value));
        }
    }

    #[test]
    fn one_field_is_changed_and_its_neighbours_are_not() {
        // Field 1 in more bytes than it needs, field 200 unknown, field 3 to be changed.
        let bytes = [0x08, 0x85, 0x80, 0x00, 0xc2, 0x0c, 0x01, 0xff, 0x18, 0x05];
        let mut message = Message::parse(&bytes).unwrap();
        assert_eq!(message.number(1), Some(5));
        message.set_number(3, 300);
        assert_eq!(message.encode(), [&bytes[..8], &[0x18, 0xac, 0x02]].concat());
    }

    #[test]
    fn packed_and_single_numbers_are_the_same() {
        let bytes = [0x28, 0x01, 0x2a, 0x03, 0x02, 0x80, 0x01];
        assert_eq!(Message::parse(&bytes).unwrap().numbers(5).unwrap(), [1, 2, 128]);
    }

    #[test]
    fn signed_numbers() {
        let bytes = [0x38, 0x01, 0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        let message = Message::parse(&bytes).unwrap();
        assert_eq!(message.sint32(7, "mnt_id").unwrap(), Some(-1));
        assert_eq!(message.need_i32(3, "pid").unwrap(), -1);
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!(Message::parse(&[0x0a, 0x05, 0x00]), Err(BadMessage::Truncated(0)));
        assert_eq!(Message::parse(&[0x0b]), Err(BadMessage::BadKey(0)));
        assert_eq!(Message::parse(&[0x00, 0x00]), Err(BadMessage::BadKey(0)));
        assert_eq!(Message::parse(&[0x08; 1]), Err(BadMessage::Truncated(1)));
        let long = [&[0x08][..], &[0xff; 11]].concat();
        assert_eq!(Message::parse(&long), Err(BadMessage::LongNumber(1)));
        let wide = [0x08, 0x80, 0x80, 0x80, 0x80, 0x10];
        assert!(Message::parse(&wide).unwrap().need_u32(1, "id").is_err());
    }
}
