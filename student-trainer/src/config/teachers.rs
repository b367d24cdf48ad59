//! Where the teachers are, and what it takes to reach them.

use super::reader::Reader;
use crate::error::TrainError;
use crate::teacher::{Access, Address, Papers};

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
        let checked = match &access {
            Some(access) => Address::parse(url, access).map(drop),
            None => Address::check(url),
        };
        if let Err(error) = checked {
            r.fault(error.to_string());
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
        teacher_ca: r.text("teacher-ca").map(Into::into),
        teacher_cert: r.text("teacher-cert").map(Into::into),
        teacher_key: r.text("teacher-key").map(Into::into),
        teacher_name: r.text("teacher-name"),
        teacher_token_file: r.text("teacher-token-file").map(Into::into),
    };
    match Access::read(papers) {
        Ok(access) => Some(access),
        Err(faults) => {
            faults.iter().for_each(|fault| r.fault(fault.to_string()));
            None
        }
    }
}
