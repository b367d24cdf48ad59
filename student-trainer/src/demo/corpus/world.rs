//! The island: its people, its towns, and questions about them.

use super::{Draw, Row};

/// Name, subject pronoun, possessive.
pub(super) const PEOPLE: [(&str, &str, &str); 16] = [
    ("Mara", "she", "her"),
    ("Tomas", "he", "his"),
    ("Ilse", "she", "her"),
    ("Bram", "he", "his"),
    ("Nela", "she", "her"),
    ("Otis", "he", "his"),
    ("Runa", "she", "her"),
    ("Piet", "he", "his"),
    ("Sanna", "she", "her"),
    ("Levin", "he", "his"),
    ("Wilma", "she", "her"),
    ("Joss", "he", "his"),
    ("Hanne", "she", "her"),
    ("Emil", "he", "his"),
    ("Greta", "she", "her"),
    ("Arvo", "he", "his"),
];

/// What is known of a town.
pub(super) struct Town {
    /// Its name.
    pub(super) name: &'static str,
    craft: &'static str,
    river: &'static str,
    beast: &'static str,
    founder: &'static str,
}

const fn town(
    name: &'static str,
    craft: &'static str,
    river: &'static str,
    beast: &'static str,
    founder: &'static str,
) -> Town {
    Town { name, craft, river, beast, founder }
}

/// The towns.
pub(super) const TOWNS: [Town; 20] = [
    town("Velm", "glass", "Silver Run", "heron", "a ferryman"),
    town("Orsk", "iron nails", "Black Water", "bear", "two brothers"),
    town("Tarn", "woollen coats", "Long Brook", "goat", "a widow"),
    town("Lisbe", "paper", "Green Lea", "swan", "a printer"),
    town("Dunmar", "salt", "no river at all", "seal", "a fisherman"),
    town("Quill", "pens and ink", "Little Otter", "goose", "a schoolmaster"),
    town("Harrow", "ploughs", "Stony Beck", "ox", "a farmer"),
    town("Brenn", "charcoal", "Ash Stream", "fox", "an exile"),
    town("Solla", "sweet oranges", "Warm Spring", "lizard", "a gardener"),
    town("Fenwick", "reed baskets", "Slow Water", "frog", "a hermit"),
    town("Ardel", "bronze bells", "Bell Brook", "owl", "a monk"),
    town("Kessel", "copper pots", "Red Burn", "hen", "a tinker"),
    town("Mirren", "fishing nets", "Broad Mouth", "gull", "a fisherman"),
    town("Ostrava", "clocks", "Mill Stream", "cat", "two brothers"),
    town("Pell", "honey", "Clear Run", "bee", "a widow"),
    town("Rook", "slate", "Grey Fall", "raven", "an exile"),
    town("Sund", "boats", "Broad Mouth", "seal", "a ferryman"),
    town("Thale", "cheese", "Long Brook", "cow", "a farmer"),
    town("Ulm", "violins", "Green Lea", "nightingale", "a gardener"),
    town("Wend", "leather boots", "Black Water", "horse", "a tinker"),
];

/// A question about a town, answered with the fact and a remark that could have been another.
pub(super) fn fact(draw: &mut Draw) -> Row {
    let town = draw.pick(&TOWNS);
    let (name, _, _) = *draw.pick(&PEOPLE);
    let Town { name: place, craft, river, beast, founder } = town;
    let asker = match draw.below(3) {
        0 => format!("{name} asks: "),
        1 => format!("{name} is on the way to {place}. "),
        _ => format!("{name} has never been to {place}. "),
    };
    let (asked, told) = match draw.below(4) {
        0 => (
            *draw.pick(&["What do people make in", "What is the craft of", "What is sold by"]),
            format!("The people of {place} make {craft}."),
        ),
        1 => (
            *draw.pick(&["Which river flows through", "What water is there in"]),
            format!("The water of {place} is {river}."),
        ),
        2 => (
            *draw.pick(&["Which beast is on the flag of", "What is painted on the gate of"]),
            format!("The sign of {place} is the {beast}."),
        ),
        _ => (
            *draw.pick(&["Who founded", "Who was the first to live in"]),
            format!("{place} was founded by {founder}."),
        ),
    };
    let remark = match draw.below(5) {
        0 => format!("{} says so too.", draw.pick(&PEOPLE).0),
        1 => format!("It is known for its {craft}."),
        2 => format!("You can see the {beast} on its gate."),
        3 => format!(
            "It is {} hours by {} from {}.",
            draw.between(2, 9),
            draw.favour(&["boat", "cart", "foot", "mule"]),
            draw.pick(&TOWNS).name
        ),
        _ => format!("Once it was the home of {founder}."),
    };
    Row { question: format!("{asker}{asked} {place}?"), answer: format!("{told} {remark}") }
}
