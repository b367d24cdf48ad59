//! Where the teachers are, and what it takes to reach them.

use client::{Access, Papers};
use serde::Serializer;
use serde::ser::SerializeMap as _;

use super::reader::Reader;
use crate::error::TrainError;
use crate::teacher::Voice;

/// Teacher addresses, a comma between them, and the files their options name. Only form and number
/// of the addresses are looked at, and whether the files serve them.
pub(super) fn teachers(r: &mut Reader<'_>) -> (Vec<String>, Access) {
    let access = access(r);
    let list = r.text("teacher").unwrap_or_default();
    let urls: Vec<_> = list.split(',').map(|url| url.trim().to_owned()).collect();
    if list.is_empty() {
        return (Vec::new(), access.unwrap_or_default());
    }
    for url in &urls {
        // What cannot be read is reported already: then form alone is looked at.
        let unread = Access::default();
        match Voice::parse(url, access.as_ref().unwrap_or(&unread)) {
            Err(client::Error::Access { .. }) if access.is_none() => {}
            // Its words begin with `teacher` and the address: here that is the option.
            Err(error) => r.fault(format!("--{error}")),
            Ok(_) => {}
        }
    }
    if urls.len() > 1 {
        r.fault(TrainError::SeveralTeachers { found: urls.len() }.to_string());
    }
    (urls, access.unwrap_or_default())
}

/// None where a file is no good.
fn access(r: &mut Reader<'_>) -> Option<Access> {
    let papers = Papers {
        ca: r.text("teacher-ca").map(Into::into),
        cert: r.text("teacher-cert").map(Into::into),
        key: r.text("teacher-key").map(Into::into),
        name: r.text("teacher-name"),
        token_file: r.text("teacher-token-file").map(Into::into),
        prefix: "--teacher-",
    };
    match Access::read(papers) {
        Ok(access) => Some(access),
        Err(faults) => {
            faults.iter().for_each(|fault| r.fault(fault.to_string()));
            None
        }
    }
}

/// Writes what was given, under the names of the options; never what is in the files.
pub(super) fn papers<S: Serializer>(access: &Access, serializer: S) -> Result<S::Ok, S::Error> {
    let Papers { ca, cert, key, name, token_file, prefix: _ } = access.papers();
    let mut map = serializer.serialize_map(Some(5))?;
    map.serialize_entry("teacher_ca", ca)?;
    map.serialize_entry("teacher_cert", cert)?;
    map.serialize_entry("teacher_key", key)?;
    map.serialize_entry("teacher_name", name)?;
    map.serialize_entry("teacher_token_file", token_file)?;
    map.end()
}
