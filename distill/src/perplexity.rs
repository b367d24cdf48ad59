//! Perplexity, by tokens and by rows.

/// Sums of negative log-likelihoods (natural logarithm, T = 1) over evaluation rows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Nll {
    sum: f64,
    tokens: u64,
    row_mean_sum: f64,
    rows: u64,
}

impl Nll {
    /// Adds one row: the negative log-likelihood of each of its scored tokens. A row without any
    /// changes nothing.
    pub fn add_row(&mut self, nll: impl IntoIterator<Item = f32>) {
        let (mut sum, mut tokens) = (0.0, 0);
        for value in nll {
            sum += f64::from(value);
            tokens += 1;
        }
        if tokens > 0 {
            self.sum += sum;
            self.tokens += tokens;
            self.row_mean_sum += sum / tokens as f64;
            self.rows += 1;
        }
    }

    /// Adds all rows of another sum.
    pub fn merge(&mut self, other: &Self) {
        self.sum += other.sum;
        self.tokens += other.tokens;
        self.row_mean_sum += other.row_mean_sum;
        self.rows += other.rows;
    }

    /// Scored tokens so far.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Rows with at least one scored token so far.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Mean negative log-likelihood of a token; none without tokens.
    pub fn mean(&self) -> Option<f64> {
        (self.tokens > 0).then(|| self.sum / self.tokens as f64)
    }

    /// The field's perplexity, `exp(Σ nll / Σ tokens)`; none without tokens.
    pub fn perplexity(&self) -> Option<f64> {
        self.mean().map(f64::exp)
    }

    /// `exp(mean over rows of each row's mean nll)`, in which a short row weighs as much as a long
    /// one; none without rows.
    pub fn perplexity_row_mean(&self) -> Option<f64> {
        (self.rows > 0).then(|| (self.row_mean_sum / self.rows as f64).exp())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_weigh_alike_in_one_and_rows_in_the_other() {
        let mut nll = Nll::default();
        nll.add_row([1.0, 2.0, 3.0]);
        nll.add_row([6.0]);
        nll.add_row([]);
        assert_eq!((nll.tokens(), nll.rows()), (4, 2));
        assert_eq!(nll.mean(), Some(3.0));
        // exp((1+2+3+6)/4) and exp((2+6)/2)
        assert!((nll.perplexity().unwrap() - 20.085_536_923_187_668).abs() < 1e-12);
        assert!((nll.perplexity_row_mean().unwrap() - 54.598_150_033_144_236).abs() < 1e-12);
    }

    #[test]
    fn parts_merge_to_the_whole() {
        let (mut whole, mut first, mut second) = (Nll::default(), Nll::default(), Nll::default());
        for row in [[0.5f32, 1.5], [4.0, 2.0]] {
            whole.add_row(row);
        }
        first.add_row([0.5, 1.5]);
        second.add_row([4.0, 2.0]);
        first.merge(&second);
        assert_eq!(first, whole);
    }

    #[test]
    fn nothing_has_no_perplexity() {
        assert_eq!(Nll::default().perplexity(), None);
        assert_eq!(Nll::default().perplexity_row_mean(), None);
    }
}
