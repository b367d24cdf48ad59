//! Sums in coins, shares and hours, worked step by step.

use super::world::{PEOPLE, TOWNS};
use super::{Draw, Row};

const GOODS: [(&str, &str); 12] = [
    ("apple", "apples"),
    ("candle", "candles"),
    ("lemon", "lemons"),
    ("rope", "ropes"),
    ("loaf", "loaves"),
    ("kite", "kites"),
    ("bell", "bells"),
    ("plum", "plums"),
    ("basket", "baskets"),
    ("cup", "cups"),
    ("lantern", "lanterns"),
    ("shell", "shells"),
];

/// Buying several things and getting change.
pub(super) fn shop(draw: &mut Draw) -> Row {
    let (name, they, _) = *draw.pick(&PEOPLE);
    let (one, many) = *draw.pick(&GOODS);
    let (count, price) = (draw.between(2, 9), draw.between(2, 9));
    let cost = count * price;
    let place = draw.pick(&["at the market", "from a pedlar", "in the harbour", "at the fair"]);
    let bought = format!("{name} buys {count} {many} {place} and each {one} costs {price} coins.");
    let worked = match draw.below(3) {
        0 => format!("Each {one} costs {price} coins, so the {many} cost"),
        1 => format!("{name} buys {count} {many} for {price} coins each. Together they cost"),
        _ => "We multiply the number by the price. The cost is".to_owned(),
    };
    let product = format!("{worked} {count} x {price} = {cost} coins.");
    if draw.below(2) == 0 {
        let question = format!("{bought} How much does {they} pay?");
        return Row { question, answer: format!("{product} The answer is {cost}.") };
    }
    let purse = cost + draw.between(1, 20);
    let left = purse - cost;
    let question = format!("{bought} {name} had {purse} coins. How many coins are left?");
    let then = draw.favour(&["Then", "After that", "So", "Now"]);
    let answer = format!(
        "{product} {then} {they} has {purse} - {cost} = {left} coins left. The answer is {left}."
    );
    Row { question, answer }
}

/// Gathering, giving away and sharing out.
pub(super) fn share(draw: &mut Draw) -> Row {
    let (name, they, _) = *draw.pick(&PEOPLE);
    let (friend, _, _) = *draw.pick(&PEOPLE);
    let (_, many) = *draw.pick(&GOODS);
    let found = draw.favour(&["finds", "picks", "gathers", "makes", "is given"]);
    if draw.below(2) == 0 {
        let (first, second) = (draw.between(5, 30), draw.between(3, 30));
        let sum = first + second;
        let given = draw.between(1, sum - 1);
        let left = sum - given;
        let day = draw.pick(&["in the morning", "on the first day", "before noon"]);
        let question = format!(
            "{name} {found} {first} {many} {day} and {second} more later, and gives {given} of \
             them to {friend}. How many {many} does {they} keep?"
        );
        let start = draw.favour(&["In all", "Together", "At first"]);
        let answer = format!(
            "{start} {they} has {first} + {second} = {sum} {many}. {friend} gets {given}, so \
             {they} keeps {sum} - {given} = {left}. The answer is {left}."
        );
        return Row { question, answer };
    }
    let (people, each) = (draw.between(2, 9), draw.between(2, 9));
    let all = people * each;
    let who = draw.favour(&["friends", "sailors", "children", "cousins", "neighbours"]);
    let question = format!(
        "{name} {found} {all} {many} and shares them evenly among {people} {who}. How many does \
         each get?"
    );
    let answer = format!(
        "There are {all} {many} for {people} {who}. Each of the {who} gets {all} / {people} = \
         {each}. The answer is {each}."
    );
    Row { question, answer }
}

/// Boats between two towns.
pub(super) fn boat(draw: &mut Draw) -> Row {
    let (from, to) = (draw.pick(&TOWNS).name, draw.pick(&TOWNS).name);
    let (start, hours) = (draw.between(5, 12), draw.between(2, 9));
    let arrival = start + hours;
    let kind = draw.favour(&["boat", "ferry", "barge", "cart"]);
    if draw.below(2) == 0 {
        let question = format!(
            "A {kind} leaves {from} at {start} and needs {hours} hours to reach {to}. When does \
             it arrive?"
        );
        let answer = format!(
            "The {kind} leaves at {start} and travels {hours} hours. It arrives at {start} + \
             {hours} = {arrival}. The answer is {arrival}."
        );
        return Row { question, answer };
    }
    let question = format!(
        "A {kind} leaves {from} at {start} and arrives in {to} at {arrival}. How long is the way?"
    );
    let answer = format!(
        "From {start} to {arrival} there are {arrival} - {start} = {hours} hours. The answer is \
         {hours}."
    );
    Row { question, answer }
}
