//! Thrift's compact protocol, as far as it takes to go through a struct. The reader of Parquet looks at the number of a
//! field and not at its type: where the type is another, it goes on at a wrong place and takes what it finds there for
//! lists of any length.

use std::io::Read;

use ::parquet::errors::{ParquetError, Result};

/// What a field is.
pub(super) enum Shape {
    Bool,
    I8,
    I16,
    I32,
    I64,
    Double,
    Binary,
    List(&'static Shape),
    /// Its fields, by their numbers from 1 on; others are passed over. Of a union one is there.
    Struct(&'static [Shape]),
}

const TRUE: u8 = 1;
const FALSE: u8 = 2;
const I8: u8 = 3;
const I16: u8 = 4;
const I32: u8 = 5;
const I64: u8 = 6;
const DOUBLE: u8 = 7;
const BINARY: u8 = 8;
const LIST: u8 = 9;
const SET: u8 = 10;
const STRUCT: u8 = 12;

impl Shape {
    fn is(&self, kind: u8) -> bool {
        match self {
            Self::Bool => matches!(kind, TRUE | FALSE),
            Self::I8 => kind == I8,
            Self::I16 => kind == I16,
            Self::I32 => kind == I32,
            Self::I64 => kind == I64,
            Self::Double => kind == DOUBLE,
            Self::Binary => kind == BINARY,
            Self::List(_) => kind == LIST,
            Self::Struct(_) => kind == STRUCT,
        }
    }
}

/// The bytes are not those of what they should be.
pub(super) fn damaged() -> ParquetError {
    ParquetError::General("a page header, or the footer, is damaged".into())
}

/// Goes through bytes.
pub(super) struct Thrift<R>(pub(super) R);

impl<R: Read> Thrift<R> {
    pub(super) fn byte(&mut self) -> Result<u8> {
        let mut byte = [0];
        self.0.read_exact(&mut byte)?;
        Ok(byte[0])
    }

    fn unsigned(&mut self) -> Result<u64> {
        let mut value = 0;
        for shift in (0..63).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(damaged())
    }

    /// Zigzag.
    pub(super) fn signed(&mut self) -> Result<i64> {
        let value = self.unsigned()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// Type and number of the next field, if there is one; it has the type that its shape has.
    pub(super) fn field(&mut self, last: i64, fields: &[Shape]) -> Result<Option<(u8, i64)>> {
        let byte = self.byte()?;
        let id = match byte >> 4 {
            _ if byte == 0 => return Ok(None),
            0 => self.signed()?,
            more => last.wrapping_add(i64::from(more)),
        };
        // The reader keeps as many bits of it.
        if !(1..=i64::from(i16::MAX)).contains(&id) {
            return Err(damaged());
        }
        let kind = byte & 0x0f;
        if shape(fields, id).is_some_and(|shape| !shape.is(kind)) { Err(damaged()) } else { Ok(Some((kind, id))) }
    }

    /// Passes a whole struct.
    pub(super) fn fields(&mut self, fields: &[Shape], depth: usize) -> Result<()> {
        let mut last = 0;
        while let Some((kind, id)) = self.field(last, fields)? {
            self.pass(kind, shape(fields, id), depth)?;
            last = id;
        }
        Ok(())
    }

    /// Passes a value; structs and lists in it are nested no deeper than this.
    pub(super) fn pass(&mut self, kind: u8, shape: Option<&Shape>, depth: usize) -> Result<()> {
        let depth = depth.checked_sub(1).ok_or_else(damaged)?;
        match kind {
            // Their value is in the type.
            TRUE | FALSE => Ok(()),
            I8 => self.bytes(1),
            I16 | I32 | I64 => self.number(),
            DOUBLE => self.bytes(8),
            BINARY => {
                let length = self.unsigned()?;
                self.bytes(length)
            }
            LIST | SET => self.list(shape, depth),
            STRUCT => match shape {
                Some(Shape::Struct(fields)) => self.fields(fields, depth),
                _ => self.fields(&[], depth),
            },
            _ => Err(damaged()),
        }
    }

    fn list(&mut self, shape: Option<&Shape>, depth: usize) -> Result<()> {
        let head = self.byte()?;
        let (kind, count) = (head & 0x0f, head >> 4);
        let count = if count == 15 { self.unsigned()? } else { u64::from(count) };
        // Some writers give an empty list no type.
        if head == 0 {
            return Ok(());
        }
        // Of booleans the reader reads no byte of theirs, and goes on as often as is declared; the format has no such lists.
        // Whatever else is in one has a byte at least.
        if matches!(kind, TRUE | FALSE) {
            return Err(damaged());
        }
        let of = match shape {
            Some(Shape::List(of)) if !of.is(kind) => return Err(damaged()),
            Some(Shape::List(of)) => Some(*of),
            _ => None,
        };
        (0..count).try_for_each(|_| self.pass(kind, of, depth))
    }

    /// A number of any width; 64 bits take ten bytes.
    fn number(&mut self) -> Result<()> {
        for _ in 0..10 {
            if self.byte()? < 0x80 {
                return Ok(());
            }
        }
        Err(damaged())
    }

    fn bytes(&mut self, count: u64) -> Result<()> {
        let passed = std::io::copy(&mut self.0.by_ref().take(count), &mut std::io::sink())?;
        if passed == count { Ok(()) } else { Err(damaged()) }
    }
}

/// The shape of the field of a number.
pub(super) fn shape(fields: &[Shape], id: i64) -> Option<&Shape> {
    fields.get(usize::try_from(id.checked_sub(1)?).ok()?)
}
