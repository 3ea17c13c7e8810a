//! What `serde` takes for an object or a whole number, brought to what the description of the API says.
//!
//! In: values of request bodies. Out: the same, or an error. Invariants: an object is never an array of its fields, which
//! derived readers take too; a number without a fraction is whole however it is written (`250.0`), as in JSON Schema.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// An object.
pub(super) fn object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    deserializer.deserialize_map(Object(PhantomData))
}

struct Object<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Object<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map))
    }
}

/// An object or null.
pub(super) fn optional_object<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    deserializer.deserialize_option(OptionalObject(PhantomData))
}

struct OptionalObject<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for OptionalObject<T> {
    type Value = Option<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object or null")
    }

    fn visit_none<E: Error>(self) -> Result<Option<T>, E> {
        Ok(None)
    }

    fn visit_unit<E: Error>(self) -> Result<Option<T>, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<T>, D::Error> {
        object(deserializer).map(Some)
    }
}

/// A whole number or null.
pub(super) fn whole<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: TryFrom<i128>,
{
    deserializer.deserialize_any(Whole(PhantomData))
}

struct Whole<T>(PhantomData<T>);

impl<T: TryFrom<i128>> Whole<T> {
    fn of<E: Error>(number: i128) -> Result<Option<T>, E> {
        T::try_from(number).map(Some).map_err(|_| E::custom(format_args!("the number {number} is out of range")))
    }
}

impl<'de, T: TryFrom<i128>> Visitor<'de> for Whole<T> {
    type Value = Option<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a whole number or null")
    }

    fn visit_none<E: Error>(self) -> Result<Option<T>, E> {
        Ok(None)
    }

    fn visit_unit<E: Error>(self) -> Result<Option<T>, E> {
        Ok(None)
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Option<T>, E> {
        Self::of(number.into())
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Option<T>, E> {
        Self::of(number.into())
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Option<T>, E> {
        // Outside of this a double is out of every range here, and a cast would hide it.
        if number.fract() != 0.0 || number.abs() > 1e18 {
            return Err(E::custom(format_args!("the number {number} is not whole, or out of range")));
        }
        Self::of(number as i128)
    }
}

/// A list that is not even read beyond `MAX` entries, which in memory are much larger than in a body.
pub(super) fn list<'de, D, T, const MAX: usize>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    deserializer.deserialize_seq(List::<T, MAX>(PhantomData))
}

struct List<T, const MAX: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for List<T, MAX> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an array of at most {MAX} entries")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Vec<T>, A::Error> {
        let mut list = Vec::new();
        while let Some(entry) = entries.next_element()? {
            if list.len() >= MAX {
                return Err(A::Error::invalid_length(MAX + 1, &self));
            }
            list.push(entry);
        }
        Ok(list)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, PartialEq, serde::Deserialize)]
    struct Outer {
        #[serde(default, deserialize_with = "whole")]
        number: Option<i32>,
        #[serde(default, deserialize_with = "optional_object")]
        inner: Option<Inner>,
    }

    #[derive(Debug, PartialEq, serde::Deserialize)]
    struct Inner {
        a: bool,
    }

    #[test]
    fn lists_end_at_their_bound() {
        let read = |text: &str| list::<_, u8, 3>(&mut serde_json::Deserializer::from_str(text)).ok();
        assert_eq!(read("[]"), Some(vec![]));
        assert_eq!(read("[1,2,3]"), Some(vec![1, 2, 3]));
        assert_eq!(read("[1,2,3,4]"), None);
        assert_eq!(read("{}"), None);
    }

    #[test]
    fn shapes() {
        let read = |text: &str| object::<_, Outer>(&mut serde_json::Deserializer::from_str(text)).ok();
        let number = |number| Some(Outer { number: Some(number), inner: None });
        assert_eq!(read("{}"), Some(Outer::default()));
        assert_eq!(read("{\"number\":null,\"inner\":null}"), Some(Outer::default()));
        assert_eq!(read("{\"number\":250.0}"), number(250));
        assert_eq!(read("{\"number\":-1}"), number(-1));
        assert_eq!(read("{\"number\":1e3}"), number(1000));
        assert_eq!(read("{\"inner\":{\"a\":true}}"), Some(Outer { number: None, inner: Some(Inner { a: true }) }));
        for text in [
            "[]",
            "[1,null]",
            "null",
            "{\"number\":0.5}",
            "{\"number\":3000000000}",
            "{\"number\":1e30}",
            "{\"number\":\"1\"}",
            "{\"number\":true}",
            "{\"inner\":[true]}",
            "{\"inner\":1}",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
