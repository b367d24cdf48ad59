//! Room for a bounded number of something, shared between clients: taken, and given back by being
//! dropped.

use std::sync::{Arc, Mutex, PoisonError};

use distill::share::Shares;

use crate::client::Client;

/// The room; clones share it.
#[derive(Clone, Debug)]
pub struct Room(Arc<Mutex<Shares<Client>>>);

/// What a client took.
#[derive(Debug)]
pub struct Taken {
    room: Room,
    client: Client,
    amount: usize,
}

/// What a handler puts among the extensions of its answer, to be given back when that has been read.
#[derive(Clone, Debug)]
pub struct KeptRoom(pub Arc<Taken>);

impl Room {
    /// Room for so many.
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Mutex::new(Shares::new(limit))))
    }

    /// Room for something of a client's that is to come: none yet.
    pub fn begin(&self, client: &Client) -> Taken {
        Taken { room: self.clone(), client: client.clone(), amount: 0 }
    }

    /// Takes room for a client; none when that is more than its share.
    pub fn take(&self, client: &Client, amount: usize) -> Option<Taken> {
        let mut shares = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = || Taken { room: self.clone(), client: client.clone(), amount };
        shares.take(client, amount).then(taken)
    }
}

impl Taken {
    /// Takes more for the same thing, until it is `amount`; false when that is more than its client's
    /// share.
    #[must_use]
    pub fn grow_to(&mut self, amount: usize) -> bool {
        let Some(more) = amount.checked_sub(self.amount).filter(|&more| more > 0) else {
            return true;
        };
        let mut shares = self.room.0.lock().unwrap_or_else(PoisonError::into_inner);
        let grown = shares.extend(&self.client, self.amount, more);
        self.amount += if grown { more } else { 0 };
        grown
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut shares = self.room.0.lock().unwrap_or_else(PoisonError::into_inner);
        shares.give_back(&self.client, self.amount);
    }
}
