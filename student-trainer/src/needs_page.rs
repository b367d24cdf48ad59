//! `student-trainer plan` as a person sees it: what each way to recompute takes, and which one fits.

use student_trainer::config::PlanConfig;
use student_trainer::needs::{Choice, Fit, Plan, amount, plan};

use crate::progress::Console;
use crate::table::{Table, grouped};

/// Plans and shows.
pub(crate) fn run(config: &PlanConfig, console: &Console) -> anyhow::Result<()> {
    let plan = plan(config, &mut |text| console.tell(text))?;
    match config.json {
        true => console.result(&format!("{}\n", serde_json::to_string_pretty(&plan)?)),
        false => console.result(&page(&plan)),
    }
}

fn page(plan: &Plan) -> String {
    let headings = plan.choices.iter().map(|choice| format!("--recompute {}", choice.recompute));
    let head = std::iter::once(String::new()).chain(headings).collect();
    let mut table = Table { head, rows: Vec::new() };
    let names = plan.choices.first().map(|choice| choice.needs.parts().map(|(name, _)| name));
    for (at, name) in names.into_iter().flatten().enumerate() {
        let bytes = |choice: &Choice| choice.needs.parts()[at].1;
        // What no choice takes is not there on this device.
        if plan.choices.iter().any(|choice| bytes(choice) > 0) {
            let cells = plan.choices.iter().map(|choice| amount(bytes(choice)));
            table.row(std::iter::once(name.to_owned()).chain(cells));
        }
    }
    let totals = plan.choices.iter().map(|choice| amount(choice.total));
    table.row(std::iter::once("all".to_owned()).chain(totals));
    let fits = plan.choices.iter().map(|choice| match choice.fits {
        Some(true) => "yes".to_owned(),
        Some(false) => "no".to_owned(),
        None => "not known".to_owned(),
    });
    table.row(std::iter::once("fits".to_owned()).chain(fits));
    let (rows, tokens) = (plan.rows, grouped(plan.tokens as i64));
    let (device, dtype) = (&plan.device, &plan.dtype);
    format!(
        "{dtype} on {device}, the largest batch: {rows} rows, {tokens} tokens{}\n\n{}\n{}\n",
        if plan.is_estimate() { " (an estimate)" } else { "" },
        table.to_text(),
        verdict(plan)
    )
}

/// What there is, and what comes of it.
fn verdict(plan: &Plan) -> String {
    let device = &plan.device;
    let there_is = match plan.room {
        Some(room) => {
            let all = room.all.map_or_else(String::new, |all| format!(" of {}", amount(all)));
            let (free, usable) = (amount(room.free), amount(room.usable));
            format!("{device} has {free}{all} free, {usable} of it for training")
        }
        None => format!("how much memory {device} has is not known"),
    };
    let recompute = plan.recompute;
    let then = match plan.fit {
        Some(Fit::Whole) => format!("--recompute {recompute} is taken"),
        Some(Fit::Parts { tokens, total }) => format!(
            "--recompute {recompute} is taken, and batches are computed in parts of at most {} tokens, which takes {}",
            grouped(tokens as i64),
            amount(total)
        ),
        Some(Fit::Tried) => format!(
            "--recompute {recompute} is taken, and may be too much: a smaller --per-device-train-batch-size or \
             --max-length takes less"
        ),
        None => format!("training is refused: {}", plan.refusal.as_deref().unwrap_or_default()),
    };
    format!("{there_is}; {then}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::tests::memory;

    #[test]
    fn the_page_says_what_is_taken_for_what_and_what_comes_of_it() {
        let text = page(&memory());
        for wanted in [
            "bf16 on cuda:0, the largest batch: 4 rows, 4,096 tokens\n",
            "--recompute none",
            "--recompute blocks",
            "optimiser",
            "6.7 GiB",
            "gradients",
            "2.2 GiB",
            "all",
            "fits",
            "no",
            "yes",
            "cuda:0 has 10.0 GiB of 24.0 GiB free, 9.8 GiB of it for training; --recompute blocks is taken",
        ] {
            assert!(text.contains(wanted), "no {wanted:?} in\n{text}");
        }
        assert!(!text.contains("teacher's matrix"), "{text}");
        let parts = Plan { fit: Some(Fit::Parts { tokens: 2048, total: 9 << 30 }), ..memory() };
        assert!(verdict(&parts).contains("parts of at most 2,048 tokens, which takes 9.0 GiB"));
        let refusal = Some("a row takes it all".to_owned());
        let said = verdict(&Plan { fit: None, room: None, refusal, ..memory() });
        assert!(said.contains("not known") && said.contains("refused: a row takes"), "{said}");
    }
}
