//! Tests of the window, one situation each; `simulation` runs all of them at random.

use super::*;
use crate::backoff::Backoff;

mod simulation;

const SETTINGS: WindowSettings = WindowSettings {
    max_requests: 3,
    max_tokens: 100,
    give_up_after: Duration::from_secs(60),
    max_silence: Duration::from_secs(20),
    backoff: Backoff { first: Duration::from_secs(2), longest: Duration::from_secs(8) },
};

const fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn send(id: u64, teacher: usize) -> Command {
    Command::Send { id, teacher }
}

fn deliver(id: u64) -> Command {
    Command::Deliver { id }
}

fn wait(seconds: u64) -> Command {
    Command::Wait { until: at(seconds) }
}

/// A window on connected teachers with room for 8 requests each, at time 0.
fn connected(teachers: usize) -> Window {
    let mut window = Window::new(SETTINGS, teachers, at(0));
    let connect: Vec<Command> =
        (0..teachers).map(|teacher| Command::Connect { teacher }).chain([wait(60)]).collect();
    assert_eq!(window.on(Event::Tick, at(0), 0.0), connect);
    for teacher in 0..teachers {
        let commands = window.on(Event::Connected { teacher, max_in_flight: 8 }, at(0), 0.0);
        assert_eq!(commands, []);
    }
    window
}

/// Sequences of these tokens, all with a place.
fn submit<const N: usize>(window: &mut Window, tokens: [usize; N]) {
    let ids = tokens.map(|tokens| window.submit(tokens));
    assert!(ids.iter().all(Option::is_some));
}

fn answered(window: &mut Window, id: u64, now: u64) -> Vec<Command> {
    window.on(Event::Answered { teacher: 0, id }, at(now), 0.0)
}

fn failed(window: &mut Window, id: u64, now: u64) -> Vec<Command> {
    let error = format!("full at {now}");
    window.on(Event::Failed { teacher: 0, id, error, pause: Duration::ZERO }, at(now), 1.0)
}

fn disconnected(window: &mut Window, teacher: usize, now: u64) -> Vec<Command> {
    let error = format!("http://teacher-{teacher} refused at {now}");
    window.on(Event::Disconnected { teacher, error, pause: Duration::ZERO }, at(now), 1.0)
}

#[test]
fn answers_out_of_order_are_delivered_in_order() {
    let mut window = connected(1);
    assert_eq!([10, 10, 10].map(|tokens| window.submit(tokens)), [Some(0), Some(1), Some(2)]);
    let commands = window.on(Event::Tick, at(1), 0.0);
    assert_eq!(commands, [send(0, 0), send(1, 0), send(2, 0), wait(21)]);
    assert_eq!(answered(&mut window, 2, 2), [wait(22)]);
    assert_eq!(answered(&mut window, 1, 3), [wait(23)]);
    assert_eq!((window.len(), window.tokens()), (3, 30));
    assert_eq!(answered(&mut window, 0, 4), [deliver(0), deliver(1), deliver(2)]);
    assert!(window.is_empty() && window.tokens() == 0);
}

#[test]
fn places_are_bounded_in_number_and_in_tokens_until_delivery() {
    let mut window = connected(1);
    assert_eq!(window.submit(60), Some(0));
    assert_eq!((window.has_room(41), window.submit(41)), (false, None));
    assert_eq!((window.submit(40), window.submit(0)), (Some(1), Some(2)));
    assert_eq!(window.submit(0), None);
    window.on(Event::Tick, at(0), 0.0);
    // Answered but not delivered still takes its place.
    answered(&mut window, 1, 1);
    assert!(!window.has_room(1));
    answered(&mut window, 0, 1);
    assert!(window.has_room(100) && !window.has_room(101));
}

#[test]
fn a_sequence_above_the_bound_goes_alone() {
    let mut window = connected(1);
    assert_eq!((window.submit(1_000), window.submit(1)), (Some(0), None));
    assert_eq!(window.on(Event::Tick, at(0), 0.0), [send(0, 0), wait(20)]);
    assert_eq!(answered(&mut window, 0, 0), [deliver(0)]);
}

#[test]
fn a_failed_request_waits_longer_each_time_while_others_go_on() {
    let mut window = connected(1);
    submit(&mut window, [1, 1]);
    window.on(Event::Tick, at(0), 0.0);
    assert_eq!(failed(&mut window, 0, 1), [wait(3)]);
    assert_eq!(answered(&mut window, 1, 2), [wait(3)]);
    assert_eq!(window.on(Event::Tick, at(3), 0.0), [send(0, 0), wait(23)]);
    assert_eq!(failed(&mut window, 0, 4), [wait(8)]);
    // A second word about the same attempt changes nothing.
    assert_eq!(failed(&mut window, 0, 5), [wait(8)]);
    assert_eq!(window.on(Event::Tick, at(8), 0.0), [send(0, 0), wait(28)]);
    assert_eq!(answered(&mut window, 0, 9), [deliver(0), deliver(1)]);
}

#[test]
fn a_lost_stream_is_opened_again_and_what_it_owed_is_sent_again() {
    let mut window = connected(1);
    submit(&mut window, [1, 1, 1]);
    window.on(Event::Tick, at(0), 0.0);
    answered(&mut window, 1, 0);
    assert_eq!(disconnected(&mut window, 0, 5), [wait(7)]);
    assert_eq!(window.on(Event::Tick, at(7), 0.0), [Command::Connect { teacher: 0 }, wait(65)]);
    let commands = window.on(Event::Connected { teacher: 0, max_in_flight: 8 }, at(8), 0.0);
    assert_eq!(commands, [send(0, 0), send(2, 0), wait(28)]);
}

#[test]
fn a_teacher_that_says_when_to_come_again_is_taken_at_its_word() {
    let settings = WindowSettings { give_up_after: Duration::from_secs(1000), ..SETTINGS };
    let mut window = Window::new(settings, 1, at(0));
    window.on(Event::Tick, at(0), 0.0);
    window.on(Event::Connected { teacher: 0, max_in_flight: 8 }, at(0), 0.0);
    window.submit(10);
    window.on(Event::Tick, at(0), 0.0);
    let leaves = |pause| {
        let pause = Duration::from_secs(pause);
        Event::Disconnected { teacher: 0, error: "it drains".to_owned(), pause }
    };
    // Longer than the pause of its own, 2 s, and at most a minute.
    assert_eq!(window.on(leaves(9), at(5), 1.0), [wait(14)]);
    let connect = Command::Connect { teacher: 0 };
    assert!(window.on(Event::Tick, at(13), 0.0) == [wait(14)]);
    assert!(window.on(Event::Tick, at(14), 0.0).contains(&connect));
    window.on(Event::Connected { teacher: 0, max_in_flight: 8 }, at(14), 0.0);
    window.on(Event::Heard { teacher: 0 }, at(15), 0.0);
    window.on(leaves(3600), at(15), 1.0);
    assert!(!window.on(Event::Tick, at(64), 0.0).contains(&connect));
    let late = window.on(Event::Tick, at(75), 0.0);
    assert!(late.contains(&connect), "{late:?}");
}

#[test]
fn another_teacher_takes_over_at_once() {
    let mut window = connected(2);
    submit(&mut window, [10, 4, 1]);
    // The one that owes fewer tokens is asked.
    let commands = window.on(Event::Tick, at(0), 0.0);
    assert_eq!(commands, [send(0, 0), send(1, 1), send(2, 1), wait(20)]);
    assert_eq!(disconnected(&mut window, 0, 5), [send(0, 1), wait(7)]);
}

#[test]
fn a_teacher_is_not_sent_more_than_it_reads_ahead() {
    let mut window = Window::new(SETTINGS, 1, at(0));
    window.on(Event::Tick, at(0), 0.0);
    submit(&mut window, [1, 1]);
    let commands = window.on(Event::Connected { teacher: 0, max_in_flight: 1 }, at(0), 0.0);
    assert_eq!(commands, [send(0, 0), wait(20)]);
    assert_eq!(answered(&mut window, 0, 1), [deliver(0), send(1, 0), wait(21)]);
}

#[test]
fn a_silent_teacher_is_dropped_and_one_that_speaks_is_not() {
    let mut window = connected(1);
    window.submit(1);
    window.on(Event::Tick, at(0), 0.0);
    assert_eq!(window.on(Event::Heard { teacher: 0 }, at(19), 0.0), [wait(39)]);
    assert_eq!(window.on(Event::Tick, at(38), 0.0), [wait(39)]);
    let commands = window.on(Event::Tick, at(39), 1.0);
    assert_eq!(commands, [Command::Disconnect { teacher: 0 }, wait(41)]);
}

#[test]
fn a_sequence_that_keeps_failing_ends_the_run_with_attempts_and_the_last_error() {
    let mut window = connected(1);
    window.submit(1);
    assert_eq!(window.on(Event::Tick, at(10), 0.0), [send(0, 0), wait(30)]);
    failed(&mut window, 0, 11);
    window.on(Event::Tick, at(13), 0.0);
    assert_eq!(failed(&mut window, 0, 70), [wait(71)]);
    let commands = window.on(Event::Tick, at(71), 0.0);
    let [Command::GiveUp { reason }] = &commands[..] else { panic!("{commands:?}") };
    let wanted = "sequence 0 could not be scored: 2 attempts in 60.0 s (limit 60.0 s), the last \
                  error: full at 70";
    assert_eq!(reason.to_string(), wanted);
    assert_eq!(answered(&mut window, 0, 72), []);
}

#[test]
fn an_outage_is_not_held_against_the_sequences_that_waited_through_it() {
    let mut window = connected(1);
    window.submit(1);
    window.on(Event::Tick, at(0), 0.0);
    // 10 s of its own, then 50 s without a teacher.
    failed(&mut window, 0, 1);
    assert_eq!(window.on(Event::Tick, at(3), 0.0), [send(0, 0), wait(23)]);
    disconnected(&mut window, 0, 11);
    window.on(Event::Tick, at(13), 0.0);
    let commands = window.on(Event::Connected { teacher: 0, max_in_flight: 8 }, at(61), 0.0);
    assert_eq!(commands, [send(0, 0), wait(81)]);
    // Since the stream opened nothing was heard: whether the outage is over is not known yet.
    assert_eq!(window.on(Event::Tick, at(75), 0.0), [wait(81)]);
    assert_eq!(failed(&mut window, 0, 76), [wait(80)]);
    // 65 s of 76 were the outage's; the sequence has 49 s left.
    assert_eq!(window.on(Event::Tick, at(80), 0.0), [send(0, 0), wait(100)]);
    failed(&mut window, 0, 99);
    window.on(Event::Tick, at(107), 0.0);
    assert_eq!(window.on(Event::Heard { teacher: 0 }, at(125), 0.0), [wait(126)]);
    let commands = window.on(Event::Tick, at(126), 0.0);
    let [Command::GiveUp { reason: GiveUp::Sequence { tried_for, .. } }] = commands[..] else {
        panic!("{commands:?}")
    };
    assert_eq!(tried_for, at(60));
}

#[test]
fn streams_that_open_and_break_without_a_word_do_not_end_an_outage() {
    let mut window = connected(1);
    window.submit(1);
    window.on(Event::Tick, at(0), 0.0);
    let mut now = 1;
    let given_up = loop {
        let commands = disconnected(&mut window, 0, now);
        if let [Command::GiveUp { reason }] = &commands[..] {
            break reason.clone();
        }
        let &[Command::Wait { until }] = &commands[..] else { panic!("{commands:?}") };
        now = until.as_secs() + 1;
        window.on(Event::Tick, at(now), 0.0);
        let commands = window.on(Event::Connected { teacher: 0, max_in_flight: 8 }, at(now), 0.0);
        assert_eq!(commands, [send(0, 0), wait(now + 20)]);
        now += 1;
    };
    assert!(matches!(given_up, GiveUp::Unreachable { attempts: 7, .. }), "{given_up}");
    assert!((61..80).contains(&now), "gave up at {now}");
}

#[test]
fn a_teacher_that_comes_back_with_nothing_to_do_is_there() {
    let mut window = connected(1);
    disconnected(&mut window, 0, 5);
    window.on(Event::Tick, at(7), 0.0);
    assert_eq!(window.on(Event::Connected { teacher: 0, max_in_flight: 8 }, at(8), 0.0), []);
    // Hours later its loss begins an outage of its own.
    assert_eq!(disconnected(&mut window, 0, 9_000), [wait(9_004)]);
}

#[test]
fn a_teacher_never_reached_ends_the_run_naming_its_address_and_the_time() {
    let mut window = Window::new(SETTINGS, 1, at(5));
    assert_eq!(window.on(Event::Tick, at(5), 0.0), [Command::Connect { teacher: 0 }, wait(65)]);
    assert_eq!(disconnected(&mut window, 0, 6), [wait(8)]);
    window.on(Event::Tick, at(8), 0.0);
    assert_eq!(disconnected(&mut window, 0, 64), [wait(65)]);
    let commands = window.on(Event::Tick, at(66), 0.0);
    let [Command::GiveUp { reason }] = &commands[..] else { panic!("{commands:?}") };
    let wanted = "no teacher answers: 2 attempts to reach one in 61.0 s (limit 60.0 s), the last \
                  error: http://teacher-0 refused at 64";
    assert_eq!(reason.to_string(), wanted);
}

#[test]
fn a_request_refused_for_good_ends_the_run_at_once() {
    let mut window = connected(1);
    window.submit(1);
    window.on(Event::Tick, at(0), 0.0);
    let error = "top_k 9 is above 8".to_string();
    let commands =
        window.on(Event::Refused { teacher: 0, id: 0, error: error.clone() }, at(1), 0.0);
    let reason = GiveUp::Refused { id: 0, teacher: 0, error };
    assert_eq!(commands, [Command::GiveUp { reason }]);
}

#[test]
fn answers_nobody_waits_for_are_reported_and_dropped() {
    let mut window = connected(1);
    submit(&mut window, [1, 1]);
    window.on(Event::Tick, at(0), 0.0);
    answered(&mut window, 1, 1);
    let ignore = |id, why| Command::Ignore { id, teacher: 0, why };
    assert_eq!(answered(&mut window, 1, 1), [ignore(1, Unwanted::Duplicate), wait(21)]);
    assert_eq!(answered(&mut window, 0, 1), [deliver(0), deliver(1)]);
    assert_eq!(answered(&mut window, 0, 1), [ignore(0, Unwanted::Duplicate)]);
    assert_eq!(answered(&mut window, 2, 1), [ignore(2, Unwanted::Unknown)]);
    assert_eq!(answered(&mut window, u64::MAX, 1), [ignore(u64::MAX, Unwanted::Unknown)]);
}

#[test]
fn an_answer_that_comes_after_its_stream_was_given_up_is_still_taken() {
    let mut window = connected(1);
    window.submit(1);
    window.on(Event::Tick, at(0), 0.0);
    disconnected(&mut window, 0, 1);
    assert_eq!(answered(&mut window, 0, 2)[0], deliver(0));
}

#[test]
fn teachers_that_do_not_exist_and_streams_not_asked_for_change_nothing() {
    let mut window = connected(1);
    window.submit(1);
    window.on(Event::Tick, at(0), 0.0);
    let connected = Event::Connected { teacher: 0, max_in_flight: 1 };
    let stranger = Event::Disconnected { teacher: 7, error: String::new(), pause: Duration::ZERO };
    for event in [connected, stranger, Event::Heard { teacher: 7 }] {
        assert_eq!(window.on(event, at(1), 0.0), [wait(20)]);
    }
}

#[test]
fn no_time_limit_is_too_long() {
    let forever = Duration::MAX;
    let backoff = Backoff { first: forever, longest: forever };
    let settings =
        WindowSettings { give_up_after: forever, max_silence: forever, backoff, ..SETTINGS };
    let mut window = Window::new(settings, 1, at(1));
    window.on(Event::Tick, at(1), 0.5);
    disconnected(&mut window, 0, 2);
}
