//! Short stories: each sentence is drawn with the ones before it in mind.

use super::world::{PEOPLE, TOWNS};
use super::{Draw, Row};

/// A beast, what it wants, and what it is like.
const BEASTS: [(&str, &[&str], &[&str]); 10] = [
    ("fox", &["a hen", "some grapes", "a warm den"], &["sly", "hungry", "young"]),
    ("bear", &["honey", "a long sleep", "fish"], &["slow", "big", "sleepy"]),
    ("heron", &["fish", "a quiet pool", "a tall nest"], &["patient", "thin", "proud"]),
    ("goat", &["fresh leaves", "the highest rock", "salt"], &["stubborn", "old", "merry"]),
    ("owl", &["a mouse", "some silence", "a hollow tree"], &["wise", "grey", "tired"]),
    ("cat", &["milk", "a warm stove", "a mouse"], &["proud", "lazy", "black"]),
    ("seal", &["fish", "a flat rock", "the sun"], &["merry", "round", "young"]),
    ("raven", &["a shiny ring", "an old secret", "bread"], &["clever", "black", "old"]),
    ("mule", &["carrots", "a day of rest", "a lighter load"], &["stubborn", "patient", "grey"]),
    ("frog", &["flies", "rain", "a louder voice"], &["small", "green", "merry"]),
];

const PLACES: [(&str, &[&str]); 8] = [
    ("forest", &["under the oaks", "between the pines", "on the mossy path"]),
    ("harbour", &["by the old boats", "on the stone pier", "among the nets"]),
    ("mountain", &["on the narrow path", "near the snow", "beside a cold spring"]),
    ("market", &["behind the fish stall", "among the baskets", "under a cart"]),
    ("mill", &["by the turning wheel", "on a sack of flour", "near the warm oven"]),
    ("garden", &["between the roses", "under the plum tree", "near the well"]),
    ("marsh", &["in the tall reeds", "on a rotten bridge", "in the fog"]),
    ("tower", &["on the broken stairs", "below the great bell", "at the top window"]),
];

const WEATHER: [&str; 6] = [
    "one cold morning",
    "on a summer evening",
    "after a storm",
    "in the first snow",
    "one windy night",
    "at the end of the harvest",
];

/// A story about a beast and a place.
pub(super) fn story(draw: &mut Draw) -> Row {
    let (beast, wishes, natures) = *draw.pick(&BEASTS);
    let (place, spots) = *draw.pick(&PLACES);
    let weather = draw.pick(&WEATHER);
    let (wish, nature, spot) = (draw.favour(wishes), draw.favour(natures), draw.favour(spots));
    let asked = match draw.below(4) {
        0 => format!("Tell me a story about a {beast} and a {place}, {weather}."),
        1 => format!("What happened to the {beast} at the {place} {weather}?"),
        2 => format!("Write a few lines: a {nature} {beast}, a {place}, {weather}."),
        _ => format!("A {beast} came to a {place} {weather}. What did it want?"),
    };
    let opening = match draw.below(3) {
        0 => format!("There was a {nature} {beast} who wanted {wish}."),
        1 => format!("A {nature} {beast} came to the {place} {weather}. It wanted {wish}."),
        _ => format!("{} a {nature} {beast} sat {spot}, thinking of {wish}.", capital(weather)),
    };
    let mut parts = vec![opening];
    if draw.below(2) == 0 {
        parts.push(sight(draw));
    }
    parts.push(meeting(draw, beast, spot));
    parts.push(deed(draw, beast));
    let glad = draw.below(5) < 3;
    parts.push(ending(draw, beast, wish, glad));
    Row { question: asked, answer: parts.join(" ") }
}

fn meeting(draw: &mut Draw, beast: &str, spot: &str) -> String {
    let (name, they, their) = *draw.pick(&PEOPLE);
    let town = draw.pick(&TOWNS).name;
    let greeting =
        draw.favour(&["Good day", "Who are you", "Go away", "Come with me", "What do you want"]);
    match draw.below(4) {
        0 => format!("{} it met {name} from {town}, and {they} said: {greeting}!", capital(spot)),
        1 => format!("Then {name} came by with {their} lantern and saw the {beast} {spot}."),
        2 => {
            format!("But {name} was there already, and {they} was looking for the road to {town}.")
        }
        _ => format!("It asked {name}, who only laughed and went back to {town}."),
    }
}

fn sight(draw: &mut Draw) -> String {
    let colour = draw.favour(&["grey", "golden", "white", "dark", "silver", "red", "pale"]);
    let thing =
        draw.favour(&["moon", "fog", "light", "smoke", "road", "gate", "sail", "cloud", "bird"]);
    let doing = draw.favour(&["hung in the air", "was all there was", "moved", "waited", "shone"]);
    let sense = draw.favour(&["It could see that a", "Far away a", "Above it a", "Nearby a"]);
    format!("{sense} {colour} {thing} {doing}.")
}

fn deed(draw: &mut Draw, beast: &str) -> String {
    let how = draw.favour(&["quickly", "quietly", "slowly", "without a word", "with a sigh"]);
    let what = draw.favour(&[
        "ran away",
        "followed the light",
        "hid in the dark",
        "began to sing",
        "jumped into the water",
        "waited",
        "climbed a wall",
        "asked for bread",
        "looked at the stars",
        "told a lie",
        "fell asleep",
        "shook its head",
    ]);
    format!("The {beast} {how} {what}.")
}

fn ending(draw: &mut Draw, beast: &str, wish: &str, glad: bool) -> String {
    let lesson = draw.favour(&[
        "patience is worth more than speed",
        "a friend is better than a feast",
        "nobody wins alone",
        "the night ends for everyone",
    ]);
    match (glad, draw.below(3)) {
        (true, 0) => format!("In the end it got {wish} and was glad."),
        (true, 1) => format!("They shared {wish}, and the {beast} slept well that night."),
        (true, _) => format!("So the {beast} found {wish} and learned that {lesson}."),
        (false, 0) => format!("It never found {wish}, but it learned that {lesson}."),
        (false, 1) => format!("The {beast} went home without {wish}, cold and sad."),
        (false, _) => format!("And {wish} was gone. The {beast} learned that {lesson}."),
    }
}

/// The text with its first letter in upper case.
fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}
