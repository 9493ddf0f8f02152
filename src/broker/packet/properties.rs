//! Reads fields of packets, and the properties of MQTT 5 (table 2-4 of the standard).

use crate::broker::packet::Reason;

/// Identifiers of the properties that the broker acts on or passes on.
pub mod id {
    pub const PAYLOAD_FORMAT: u8 = 1;
    pub const MESSAGE_EXPIRY: u8 = 2;
    pub const CONTENT_TYPE: u8 = 3;
    pub const RESPONSE_TOPIC: u8 = 8;
    pub const CORRELATION_DATA: u8 = 9;
    pub const SUBSCRIPTION_ID: u8 = 11;
    pub const SESSION_EXPIRY: u8 = 17;
    pub const ASSIGNED_CLIENT_ID: u8 = 18;
    pub const AUTHENTICATION_METHOD: u8 = 21;
    pub const AUTHENTICATION_DATA: u8 = 22;
    pub const REQUEST_PROBLEM_INFORMATION: u8 = 23;
    pub const WILL_DELAY: u8 = 24;
    pub const REQUEST_RESPONSE_INFORMATION: u8 = 25;
    pub const REASON_STRING: u8 = 31;
    pub const RECEIVE_MAXIMUM: u8 = 33;
    pub const TOPIC_ALIAS_MAXIMUM: u8 = 34;
    pub const TOPIC_ALIAS: u8 = 35;
    pub const USER_PROPERTY: u8 = 38;
    pub const MAXIMUM_PACKET_SIZE: u8 = 39;
    pub const SUBSCRIPTION_ID_AVAILABLE: u8 = 41;
    pub const SHARED_SUBSCRIPTION_AVAILABLE: u8 = 42;
}

/// A cursor over the bytes of a packet. Every read is checked against what is left.
pub struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub fn remaining(&self) -> usize {
        self.bytes.len()
    }

    pub fn take(&mut self, count: usize) -> Result<&'a [u8], Reason> {
        let (taken, rest) = self.bytes.split_at_checked(count).ok_or(Reason::Malformed)?;
        self.bytes = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Reason> {
        let (taken, rest) = self.bytes.split_first_chunk().ok_or(Reason::Malformed)?;
        self.bytes = rest;
        Ok(*taken)
    }

    pub fn byte(&mut self) -> Result<u8, Reason> {
        self.array().map(|[byte]| byte)
    }

    pub fn two_bytes(&mut self) -> Result<u16, Reason> {
        self.array().map(u16::from_be_bytes)
    }

    pub fn four_bytes(&mut self) -> Result<u32, Reason> {
        self.array().map(u32::from_be_bytes)
    }

    pub fn packet_id(&mut self) -> Result<u16, Reason> {
        match self.two_bytes()? {
            0 => Err(Reason::ProtocolError),
            id => Ok(id),
        }
    }

    pub fn variable(&mut self) -> Result<u32, Reason> {
        let mut value = 0;
        for shift in [0, 7, 14, 21] {
            let byte = self.byte()?;
            value |= u32::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Reason::Malformed)
    }

    pub fn binary(&mut self) -> Result<&'a [u8], Reason> {
        let count = self.two_bytes()?;
        self.take(count.into())
    }

    /// UTF-8 without U+0000 (section 1.5.4).
    pub fn text(&mut self) -> Result<&'a str, Reason> {
        let text = str::from_utf8(self.binary()?).map_err(|_| Reason::Malformed)?;
        if text.contains('\0') { Err(Reason::Malformed) } else { Ok(text) }
    }

    /// Reads a list of properties. `each` gets every property of `allowed`, with its bytes as they
    /// are on the wire; any other is refused, and so is a repeated one.
    pub fn properties(
        &mut self,
        allowed: &[u8],
        mut each: impl FnMut(Property<'a>) -> Result<(), Reason>,
    ) -> Result<(), Reason> {
        let count = self.variable()? as usize;
        let mut list = Reader::new(self.take(count)?);
        let mut seen = 0_u64;
        while !list.is_empty() {
            let before = list.bytes;
            let id = list.byte()?;
            let value = list.value(id)?;
            if !allowed.contains(&id) {
                return Err(Reason::ProtocolError);
            }
            let bit = 1 << id;
            if seen & bit != 0 && id != id::USER_PROPERTY {
                return Err(Reason::ProtocolError);
            }
            seen |= bit;
            each(Property { id, value, encoded: &before[..before.len() - list.bytes.len()] })?;
        }
        Ok(())
    }

    fn value(&mut self, property: u8) -> Result<Value<'a>, Reason> {
        Ok(match property {
            1 | 23 | 25 | 36 | 37 | 40 | 41 | 42 => match self.byte()? {
                bit @ 0..=1 => Value::Number(bit.into()),
                _ => return Err(Reason::ProtocolError),
            },
            19 | 33 | 34 | 35 => Value::Number(self.two_bytes()?.into()),
            2 | 17 | 24 | 39 => Value::Number(self.four_bytes()?),
            11 => Value::Number(self.variable()?),
            9 | 22 => Value::Binary(self.binary()?),
            3 | 8 | 18 | 21 | 26 | 28 | 31 => Value::Text(self.text()?),
            38 => {
                self.text()?;
                Value::Text(self.text()?)
            }
            _ => return Err(Reason::Malformed),
        })
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Property<'a> {
    pub id: u8,
    pub value: Value<'a>,
    /// Identifier and value, as they are on the wire.
    pub encoded: &'a [u8],
}

#[derive(Clone, Copy, Debug)]
pub enum Value<'a> {
    Number(u32),
    Text(&'a str),
    Binary(&'a [u8]),
}

impl Property<'_> {
    /// The number, which must not be 0.
    pub fn positive(&self) -> Result<u32, Reason> {
        match self.value {
            Value::Number(number) if number > 0 => Ok(number),
            _ => Err(Reason::ProtocolError),
        }
    }

    pub fn number(&self) -> u32 {
        if let Value::Number(number) = self.value { number } else { 0 }
    }
}
