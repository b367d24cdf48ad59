//! Tests of the tokens: the file, the comparison, and what is never said.

use super::*;

const ALICE: &str = "alice-0123456789abcdef";
const OTHER: &str = "other-0123456789abcdef";

fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

fn headers(value: &str) -> HeaderMap {
    HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())])
}

#[test]
fn a_token_of_the_file_is_let_in_under_its_name() {
    let file = file(&format!("# tokens\n\nalice {ALICE}\n  {OTHER}  \n"));
    let access = Access::new(Some(file.path()), false).unwrap();
    let ask = |value: &str| access.check(&headers(value), &Client::unknown(), false);
    assert_eq!(ask(&format!("Bearer {ALICE}")), Ok(Client::named("alice")));
    assert_eq!(ask(&format!("bearer {OTHER}")), Ok(Client::named("4")));
    let wrong = [
        ALICE.to_owned(),
        format!("Basic {ALICE}"),
        "Bearer".into(),
        "Bearer ".into(),
        format!("Bearer {}", &ALICE[..ALICE.len() - 1]),
        format!("Bearer {ALICE}x"),
        format!("Bearer {}", ALICE.to_uppercase()),
        "Bearer alice".into(),
    ];
    for value in wrong {
        assert_eq!(ask(&value), Err(Denied::WrongToken), "{value}");
    }
    let none = access.check(&HeaderMap::new(), &Client::unknown(), true);
    assert_eq!(none, Err(Denied::NoToken));
}

#[test]
fn certificates_are_asked_for_beside_tokens() {
    let file = file(ALICE);
    let access = Access::new(Some(file.path()), true).unwrap();
    let good = headers(&format!("Bearer {ALICE}"));
    let ask = |certified| access.check(&good, &Client::unknown(), certified);
    assert_eq!((ask(false), ask(true)), (Err(Denied::NoCertificate), Ok(Client::named("1"))));
    let certificates = Access::new(None, true).unwrap();
    assert!(!certificates.is_open() && Access::default().is_open());
    let peer = Client::named("certificate");
    assert_eq!(certificates.check(&HeaderMap::new(), &peer, true), Ok(peer));
}

#[test]
fn a_file_is_read_again_and_one_that_cannot_be_used_changes_nothing() {
    let file = file(ALICE);
    let access = Access::new(Some(file.path()), false).unwrap();
    let may = |token: &str| {
        access.check(&headers(&format!("Bearer {token}")), &Client::unknown(), false).is_ok()
    };
    std::fs::write(file.path(), OTHER).unwrap();
    assert!(may(ALICE) && !may(OTHER));
    access.reload().unwrap();
    assert!(!may(ALICE) && may(OTHER));
    std::fs::write(file.path(), "").unwrap();
    assert!(matches!(access.reload(), Err(TokensError::Empty { .. })));
    assert!(may(OTHER));
}

#[test]
fn files_that_cannot_be_used_are_refused_by_line_and_without_their_text() {
    for (text, says) in [
        ("short", "line 1: a token has at least 16"),
        ("a b c-0123456789abcdef", "line 1: more than two words"),
        ("\nalice-0123456789äöüß", "line 2: a token has"),
        ("x x-0123456789abcdef\ny x-0123456789abcdef", "line 2: this token is there already"),
        ("# nothing", "holds no token"),
    ] {
        let file = file(text);
        let error = Access::new(Some(file.path()), false).err().unwrap().to_string();
        assert!(error.contains(says) && error.contains("--auth-tokens"), "{error}");
        assert!(!error.contains("0123456789"), "{error}");
    }
    let missing = Access::new(Some(Path::new("/nowhere/tokens")), false).err().unwrap();
    assert!(missing.to_string().contains("/nowhere/tokens"), "{missing}");
}
