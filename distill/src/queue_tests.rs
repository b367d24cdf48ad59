//! Tests of the queue: bounds, shares, turns, batches.

use proptest::prelude::*;

use super::*;

type Named = FairQueue<&'static str, usize>;

const WIDE: QueueBounds = QueueBounds { sequences: 1_000_000, tokens: 1_000_000_000 };

fn push(queue: &mut Named, client: &'static str, tokens: usize, name: usize) {
    queue.admits(&client, tokens).unwrap();
    queue.push(client, Priority::Normal, tokens, name);
}

#[test]
fn refuses_at_either_bound_and_names_it() {
    let bounds = QueueBounds { sequences: 6, tokens: 100 };
    let mut queue = Named::new(bounds);
    push(&mut queue, "a", 30, 0);
    // Alone, a client has half: 30 + 21 are more than the 70 that are free less 30 of its own.
    assert_eq!(queue.admits(&"a", 40), Ok(()));
    let refused = queue.admits(&"a", 41).unwrap_err();
    assert_eq!(refused, QueueFull::Tokens { own: 30, queued: 30, wanted: 41, limit: 100 });
    assert_eq!(queue.admits(&"b", 70), Ok(()));
    assert!(queue.admits(&"b", 71).is_err());
    push(&mut queue, "a", 1, 1);
    push(&mut queue, "a", 1, 2);
    let refused = queue.admits(&"a", 1).unwrap_err();
    assert_eq!(refused, QueueFull::Sequences { own: 3, queued: 3, limit: 6 });
    for name in 3..5 {
        push(&mut queue, "b", 1, name);
    }
    // One place is free: for whoever has none.
    assert!(queue.admits(&"b", 1).is_err());
    assert_eq!(queue.admits(&"c", 1), Ok(()));
}

#[test]
fn greedy_clients_leave_room_and_what_a_batch_sets_free_is_for_newcomers() {
    let bounds = QueueBounds { sequences: 512, tokens: 65_536 };
    let mut queue: FairQueue<u32, ()> = FairQueue::new(bounds);
    let fill = |queue: &mut FairQueue<u32, ()>, client| {
        let before = queue.len();
        while queue.admits(&client, 100).is_ok() {
            queue.push(client, Priority::Normal, 100, ());
        }
        queue.len() - before
    };
    let found: Vec<usize> = (0..10).map(|client| fill(&mut queue, client)).collect();
    assert_eq!(found, [256, 128, 64, 32, 16, 8, 4, 2, 1, 1]);
    assert_eq!(fill(&mut queue, 10), 0);
    queue.take_batch(16_384);
    // 163 places came free: half of them, rounded up, for the newcomer; the first has more waiting.
    assert_eq!((fill(&mut queue, 0), fill(&mut queue, 10)), (0, 82));
}

#[test]
fn an_empty_queue_admits_a_sequence_longer_than_the_bound() {
    let mut queue = Named::new(QueueBounds { sequences: 3, tokens: 100 });
    push(&mut queue, "a", 500, 0);
    assert!(queue.admits(&"b", 1).is_err());
    assert_eq!(queue.take_batch(50), [0]);
    assert_eq!((queue.len(), queue.tokens()), (0, 0));
}

#[test]
fn a_batch_is_filled_with_what_fits_and_what_did_not_opens_the_next() {
    let mut queue = Named::new(WIDE);
    for (name, tokens) in [10, 20, 35, 5, 200, 1].into_iter().enumerate() {
        push(&mut queue, "a", tokens, name);
    }
    assert_eq!(queue.take_batch(60), [0, 1, 3, 5]);
    assert_eq!(queue.take_batch(60), [2]);
    assert_eq!(queue.take_batch(60), [4]);
    assert!(queue.take_batch(60).is_empty() && queue.is_empty());
}

/// A long sequence is not kept out for ever by short ones, of its own client or of others.
#[test]
fn what_was_passed_over_waits_one_batch_only() {
    let mut queue = Named::new(WIDE);
    push(&mut queue, "b", 1, 0);
    push(&mut queue, "a", 60, 1);
    for name in 2..200 {
        push(&mut queue, "a", 1, name);
    }
    assert!(!queue.take_batch(60).contains(&1));
    // Somebody who was served less, so that it would be passed over again.
    push(&mut queue, "b", 1, 777);
    assert_eq!(queue.take_batch(60), [1]);
    assert!(queue.take_batch(60).contains(&777));
}

#[test]
fn a_flood_of_one_client_makes_another_wait_for_one_batch() {
    let mut queue = Named::new(WIDE);
    for name in 0..10_000 {
        push(&mut queue, "flood", 100, name);
    }
    queue.take_batch(1000);
    push(&mut queue, "small", 100, 77_777);
    assert!(queue.take_batch(1000).contains(&77_777));
}

#[test]
fn priorities_order_a_clients_own_and_nobody_elses() {
    let mut queue = Named::new(WIDE);
    for (name, priority) in
        [(0, Priority::Low), (1, Priority::Normal), (2, Priority::High), (3, Priority::High)]
    {
        queue.push("a", priority, 1, name);
        queue.push("b", Priority::Low, 1, 10 + name);
    }
    let turns: Vec<usize> = (0..8).flat_map(|_| queue.take_batch(1)).collect();
    let of = |client: fn(&usize) -> bool| turns.iter().copied().filter(client).collect::<Vec<_>>();
    assert_eq!(of(|&name| name < 10), [2, 3, 1, 0]);
    assert_eq!(of(|&name| name >= 10), [10, 11, 12, 13]);
    assert_eq!(turns.iter().take(4).filter(|&&name| name >= 10).count(), 2, "{turns:?}");
}

/// Coming back each time with one sequence is no way to more than one's share of tokens.
#[test]
fn leaving_and_coming_back_gains_nothing() {
    let mut queue = Named::new(WIDE);
    for _ in 0..1000 {
        push(&mut queue, "steady", 10, 0);
    }
    let mut served = [0, 0];
    for _ in 0..300 {
        if queue.clients.get("returns").is_none_or(|client| client.tokens == 0) {
            push(&mut queue, "returns", 100, 1);
        }
        for name in queue.take_batch(10) {
            served[name] += [10, 100][name];
        }
    }
    assert!(served[1] <= served[0] + 200, "{served:?}");
    assert!(served[1] >= served[0] / 2, "{served:?}");
}

#[test]
fn what_nobody_waits_for_leaves_and_its_tokens_with_it() {
    let mut queue = Named::new(QueueBounds { sequences: 6, tokens: 200 });
    for (name, tokens) in [50, 20, 30].into_iter().enumerate() {
        push(&mut queue, "a", tokens, name);
    }
    assert_eq!(queue.drop_unwanted(|name| *name != 1), 1);
    assert_eq!((queue.len(), queue.tokens()), (2, 80));
    assert_eq!(queue.admits(&"a", 20), Ok(()));
    assert_eq!(queue.oldest(), Some(&0));
}

#[test]
fn the_pause_is_the_time_the_queue_takes() {
    assert_eq!(pause(10_000, 5_000.0), Duration::from_secs(2));
    assert_eq!(pause(1, 5_000.0), Duration::from_millis(100));
    assert_eq!(pause(usize::MAX, 1.0), Duration::from_secs(10));
    assert_eq!((pause(5, 0.0), pause(0, 0.0)), (PAUSES[2], PAUSES[2]));
}

proptest! {
    /// Whatever comes and goes: nothing is lost or doubled, bounds hold, and clients that always
    /// have something waiting are served equally but for a sequence and a batch.
    #[test]
    fn busy_clients_get_equal_shares(
        lengths in prop::collection::vec(prop::collection::vec(1usize..80, 300), 2..5),
        budget in 1usize..300,
    ) {
        let mut queue: FairQueue<usize, (usize, usize)> = FairQueue::new(WIDE);
        let total: usize = lengths.iter().flatten().sum();
        for (client, lengths) in lengths.iter().enumerate() {
            for &tokens in lengths {
                queue.push(client, Priority::Normal, tokens, (client, tokens));
            }
        }
        let mut served = vec![0usize; lengths.len()];
        let mut all = 0;
        while !queue.is_empty() {
            let batch = queue.take_batch(budget);
            let tokens: usize = batch.iter().map(|(_, tokens)| tokens).sum();
            prop_assert!(batch.len() == 1 || tokens <= budget);
            prop_assert!(!batch.is_empty());
            all += tokens;
            batch.iter().for_each(|&(client, tokens)| served[client] += tokens);
            prop_assert_eq!(queue.tokens(), total - all);
            if queue.clients.len() == lengths.len() && queue.clients.values().all(|c| c.tokens > 0) {
                let (least, most) = (served.iter().min().unwrap(), served.iter().max().unwrap());
                prop_assert!(most - least <= 80 + budget.max(80), "{served:?}");
            }
        }
        prop_assert_eq!(all, total);
    }
}

#[test]
fn clients_that_come_once_each_are_not_remembered_for_ever() {
    let bounds = QueueBounds { sequences: 8, tokens: 1_000_000 };
    let mut queue: FairQueue<u32, u32> = FairQueue::new(bounds);
    // One sequence waits all the while, so that the queue is never empty.
    queue.push(0, Priority::Low, 1_000, 0);
    for client in 1..1_000 {
        queue.push(client, Priority::Normal, 10, client);
        assert_eq!(queue.take_batch(10).len(), 1);
        queue.push(0, Priority::Normal, 10, 0);
        assert!(queue.clients.len() <= 2 + bounds.sequences, "{} remembered", queue.clients.len());
    }
    while !queue.take_batch(2_000).is_empty() {}
    assert_eq!(queue.clients.len(), 0);
}

/// A name that counts how often names are compared.
#[derive(Clone, Eq)]
struct Counted(u32);

thread_local! {
    static COMPARED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

impl PartialEq for Counted {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl PartialOrd for Counted {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Counted {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        COMPARED.set(COMPARED.get() + 1);
        self.0.cmp(&other.0)
    }
}

#[test]
fn a_batch_of_many_clients_takes_little_more_time_than_there_are_clients() {
    const CLIENTS: u32 = 4_000;
    let bounds = QueueBounds { sequences: 10_000, tokens: 1_000_000 };
    let mut queue = FairQueue::new(bounds);
    for client in 0..CLIENTS {
        // The first fits, and no other into what it leaves.
        queue.push(Counted(client), Priority::Normal, if client == 0 { 10 } else { 41 }, client);
    }
    COMPARED.set(0);
    assert_eq!(queue.take_batch(40), [0]);
    // 12 comparisons find a name, a few times for each client.
    let most = 100 * CLIENTS as usize;
    assert!(COMPARED.get() < most, "{} comparisons of {most}", COMPARED.get());
}
