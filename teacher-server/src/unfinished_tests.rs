//! Tests of unfinished messages: every way bytes can be cut, whose room they take, and when it comes
//! back.

use distill::handshake::Limits;
use proto::limits::DEFAULT_LIMITS;
use std::net::SocketAddr;

use futures::StreamExt as _;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::*;
use crate::client::Peer;

const MINUTE: Duration = Duration::from_secs(60);

fn bounds(limit: usize, timeout: Duration) -> Unfinished {
    let limits = Limits {
        max_unfinished_bytes: limit,
        max_request_bytes: 1000,
        message_timeout: timeout,
        ..DEFAULT_LIMITS
    };
    Unfinished::new(&limits, Metrics::default())
}

/// A message as it travels.
fn message(length: usize) -> Vec<u8> {
    [&[0][..], &(length as u32).to_be_bytes(), &vec![7; length]].concat()
}

/// A body that is fed by hand, of a call of one of this machine's clients.
fn call(bounds: &Unfinished, client: u16, path: &str) -> (UnboundedSender<Vec<u8>>, Body) {
    let (feed, chunks) = unbounded_channel::<Vec<u8>>();
    let chunks = UnboundedReceiverStream::new(chunks).map(Ok::<_, std::convert::Infallible>);
    let mut request = Request::new(Body::from_stream(chunks));
    *request.uri_mut() = path.parse().unwrap();
    let client = Client::at(SocketAddr::from(([127, 0, 0, 1], client)));
    request.extensions_mut().insert(Peer { client, ..Peer::default() });
    (feed, bounds.bound(request).into_body())
}

async fn next(body: &mut Body) -> Result<Vec<u8>, String> {
    let frame = std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await;
    let frame = frame.expect("a frame").map_err(|error| error.to_string())?;
    Ok(frame.into_data().expect("data").to_vec())
}

#[tokio::test]
async fn messages_cut_anywhere_pass_as_they_are_and_leave_no_trace() {
    let all = [message(0), message(3), message(300), message(1)].concat();
    for size in [1, 2, 4, 5, 6, 7, 100, all.len()] {
        let bounds = bounds(2000, MINUTE);
        let (feed, mut body) = call(&bounds, 1, "/t/Score");
        let mut passed = Vec::new();
        for chunk in all.chunks(size) {
            feed.send(chunk.to_vec()).unwrap();
            passed.extend(next(&mut body).await.unwrap());
        }
        assert_eq!(passed, all, "in chunks of {size}");
        // All the room is back.
        assert!(bounds.room.take(&Client::unknown(), 2000).is_some(), "in chunks of {size}");
    }
}

#[tokio::test]
async fn what_has_come_of_a_message_takes_its_clients_room_until_it_is_complete_or_given_up() {
    let bounds = bounds(1000, MINUTE);
    let (feed, mut body) = call(&bounds, 1, "/t/Score");
    // What is announced takes nothing, nor does the beginning.
    let (first, rest) = (PREFIX_BYTES + UNCOUNTED, 400);
    feed.send(message(90_000)[..first].to_vec()).unwrap();
    next(&mut body).await.unwrap();
    assert!(bounds.room.take(&Client::unknown(), 1000).is_some());
    feed.send(vec![7; rest]).unwrap();
    next(&mut body).await.unwrap();
    // 600 are free: 200 more for the same client, 600 for another.
    for (client, length, fits) in
        [(1, 201, false), (1, 200, true), (2, 601, false), (2, 600, true), (2, 0, true)]
    {
        let (feed, mut body) = call(&bounds, client, "/t/Score");
        feed.send(message(90_000)[..first + length].to_vec()).unwrap();
        let refused = next(&mut body).await.err();
        assert_eq!(refused.is_none(), fits, "{length} of client {client}: {refused:?}");
        assert!(refused.is_none_or(|text| text.contains("max_unfinished_bytes")));
    }
    drop(body);
    assert!(bounds.room.take(&Client::unknown(), 1000).is_some());
    // Whole, it is a stream's no more, and a call's with one message until its request ends.
    let whole = message(UNCOUNTED + 400);
    for (path, free) in [("/t/Score", true), ("/t/ScoreText", false)] {
        let (feed, mut body) = call(&bounds, 1, path);
        feed.send(whole.clone()).unwrap();
        next(&mut body).await.unwrap();
        assert_eq!(bounds.room.take(&Client::unknown(), 1000).is_some(), free, "{path}");
        drop(feed);
        assert!(std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await.is_none());
        assert!(bounds.room.take(&Client::unknown(), 1000).is_some(), "{path}");
    }
}

#[tokio::test]
async fn a_message_has_its_time_and_a_stream_without_one_has_all_the_time_there_is() {
    let bounds = bounds(1000, Duration::from_secs(1));
    let late = async |path: &str, begun: Vec<u8>| {
        let (feed, mut body) = call(&bounds, 1, path);
        if !begun.is_empty() {
            feed.send(begun).unwrap();
            next(&mut body).await.unwrap();
        }
        let more = tokio::time::timeout(Duration::from_secs(3), next(&mut body)).await;
        drop(feed);
        more.ok().map(|more| more.unwrap_err())
    };
    let ended = async |path, begun| {
        let said = late(path, begun).await.expect("an end");
        assert!(said.contains("within 1 s"), "{said}");
    };
    let goes_on = async |begun| assert_eq!(late("/t/Score", begun).await, None);
    tokio::join!(
        ended("/t/ScoreText", vec![]),
        ended("/t/ScoreText", vec![0, 0]),
        ended("/t/Score", message(9)[..7].to_vec()),
        goes_on(vec![]),
        goes_on(message(9)),
    );
}
