//! Deserializes JSON bodies and queries. Every error names the field by a pointer, says what is valid, and what was
//! given.
//!
//! serde tells a deserializer's error what was expected; this deserializer keeps that with the place, where the errors
//! of others are texts. It also refuses, in every call, names that are given twice, and U+0000, which Postgres cannot
//! store.

mod fault;
mod given;
mod json;

use serde::de::DeserializeOwned;

use super::problem::Error;
use fault::Fault;
use given::{Given, Parameter};
use json::Json;

/// Deserializes a JSON body.
pub(super) fn json<T: DeserializeOwned>(text: &[u8]) -> Result<T, Error> {
    if text.is_empty() {
        let detail = "the body is empty; send a JSON object";
        return Err(Error::MalformedRequest(detail.to_owned()));
    }
    let json: Json = serde_json::from_slice(text)
        .map_err(|error| Error::MalformedRequest(format!("the body is not JSON: {error}")))?;
    json.check()?;
    Ok(Given::Json(&json).read()?)
}

/// Deserializes the parameters of a query.
pub(super) fn query<T: DeserializeOwned>(query: &str) -> Result<T, Error> {
    let mut parameters = Vec::<Parameter>::new();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        if name.contains('\0') || value.contains('\0') {
            return Err(Fault::null(&value).within(&name).into());
        }
        match parameters.iter_mut().find(|(known, _)| *known == name) {
            Some((_, values)) => values.push(value.into_owned()),
            None => parameters.push((name.into_owned(), vec![value.into_owned()])),
        }
    }
    Ok(Given::Query(&parameters).read()?)
}
