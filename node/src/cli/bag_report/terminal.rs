//! The report for people on a terminal.

use takt_engine::text::CivilTime;

use crate::{
    bag::{AskedReport, ClassReport, Deadlines, NodeReport, Report, Spread, StreamReport, Worst},
    cli::paint,
};

/// Prints a recording in figures.
pub(super) fn show(report: &Report) {
    let num_bytes = report.files.iter().map(|file| file.bytes).sum();
    let start_s = i64::try_from(report.start_ns / 1_000_000_000).unwrap_or(i64::MAX);
    let start = CivilTime::from_unix_seconds(start_s).format("%Y-%m-%d %H:%M:%S UTC").unwrap_or_default();
    sayln!(
        "{}  {:.1} s from {start}, {} in {} file{}",
        paint::bold("recording"),
        report.length_s,
        paint::bytes(num_bytes),
        report.files.len(),
        if report.files.len() == 1 { "" } else { "s" },
    );
    if report.since_s > 0.0 || report.until_s.is_some() {
        let until = report.until_s.map_or_else(|| "the end".to_owned(), |until_s| format!("{until_s} s"));
        sayln!("  {}", paint::yellow(&format!("only from {} s to {until}", report.since_s)));
    }
    for file in &report.files {
        file.notes
            .iter()
            .for_each(|note| sayln!("  {}", paint::yellow(&plain(&format!("{}: {note}", file.path)))));
    }
    for bad in &report.malformed {
        let num = counted(bad.num, "message", "messages");
        let text = format!("{}: {num} that cannot be read, the first: {}", bad.topic, bad.first);
        sayln!("  {}", paint::yellow(&plain(&text)));
    }
    report.nodes.iter().for_each(show_node);
}

fn show_node(node: &NodeReport) {
    sayln!("\n{}  {}", paint::bold(&plain(&node.node)), counted(node.num_requests, "reply", "replies"));
    sayln!("  {}", paint::dim(&plain(&node.topics.join("  "))));
    node.classes.iter().for_each(show_class);
    if let Some(asked) = &node.asked {
        show_asked(asked);
    }
    node.streams.iter().for_each(show_stream);
    let twice = [(node.num_replies_twice, "reply", "replies"), (node.num_prompts_twice, "prompt", "prompts")];
    for (num, one, many) in twice.into_iter().filter(|(num, ..)| *num > 0) {
        let text = format!("{} twice in the recording, counted once", counted(num, one, many));
        sayln!("  {}", paint::yellow(&text));
    }
    show_worst(&node.worst);
}

fn show_class(report: &ClassReport) {
    let counts = &report.status;
    let counts = [
        (counts.complete, "complete"),
        (counts.truncated_at_deadline, "truncated at the deadline"),
        (counts.closed_at_deadline, "closed at the deadline"),
        (counts.rejected, "refused"),
        (counts.cancelled, "cancelled"),
        (counts.failed, "failed"),
    ];
    let counts: Vec<String> = counts
        .into_iter()
        .filter(|(num, _)| *num > 0)
        .map(|(num, what)| format!("{} {what}", paint::grouped(num)))
        .collect();
    sayln!(
        "\n  {}  {}: {}",
        paint::bold(report.class.name()),
        counted(report.num_requests, "request", "requests"),
        counts.join(", ")
    );
    show_facts(&class_facts(report));
    let spreads = [
        ("total ms", &report.total_ms),
        ("first token", &report.ttft_ms),
        ("queue", &report.queue_ms),
        ("prefill", &report.prefill_ms),
    ];
    show_spreads(&spreads);
}

fn class_facts(report: &ClassReport) -> Vec<(&'static str, String)> {
    let mut rows = Vec::new();
    for (label, deadlines) in [("promised", &report.promised), ("not promised", &report.unpromised)] {
        if deadlines.num > 0 {
            rows.push((label, told(deadlines)));
        }
    }
    let refused = &report.rejected;
    if let (Some(earliest), Some(short)) = (&refused.earliest_deadline_ms, &refused.short_by_ms) {
        let num = paint::grouped(refused.num_for_want_of_time);
        let text = format!(
            "{num} for want of time; could have promised p50 {}, p90 {}, max {} ms, p50 {} ms more than was asked for",
            ms(earliest.p50),
            ms(earliest.p90),
            ms(earliest.max),
            ms(short.p50),
        );
        rows.push(("refused", text));
    }
    if let Some(slack) = &report.slack_ms {
        let text =
            format!("min {}, p1 {}, p50 {} ms left at the reply", ms(slack.min), ms(slack.p1), ms(slack.p50));
        rows.push(("slack", text));
    }
    if let Some(tok_s) = report.tok_s {
        rows.push((
            "speed",
            format!("{tok_s:.0} tokens/s, {}", counted(report.num_tokens, "token", "tokens")),
        ));
    }
    if let Some(drafts) = &report.speculation {
        let share = drafts.acceptance * 100.0;
        let text = format!("{share:.1} % of proposals accepted, {:.2} tokens a round", drafts.accept_len);
        rows.push(("speculation", text));
    }
    if let (Some(defaulted), Some(cut)) = (report.defaulted_share, report.cut_share)
        && defaulted + cut > 0.0
    {
        let text = format!(
            "{:.1} % of answers have defaults in them, {:.1} % cut values",
            defaulted * 100.0,
            cut * 100.0
        );
        rows.push(("form", text));
    }
    rows
}

/// What became of deadlines, in words.
fn told(deadlines: &Deadlines) -> String {
    let Deadlines { num, kept, missed, cancelled, failed, missed_by_ms } = deadlines;
    let mut text = format!(
        "{}, {}",
        counted(*num, "deadline", "deadlines"),
        paint::green(&format!("{} kept", paint::grouped(*kept)))
    );
    let share = *missed as f64 / (*num).max(1) as f64 * 100.0;
    match missed_by_ms {
        None => text += ", none missed",
        Some(by) => {
            let by = format!("by p50 {}, max {} ms", ms(by.p50), ms(by.max));
            text += &format!(
                ", {}",
                paint::red(&format!("{} missed ({share:.2} %) {by}", paint::grouped(*missed)))
            );
        }
    }
    for (count, what) in [(cancelled, "cancelled"), (failed, "failed")] {
        if *count > 0 {
            text += &format!(", {count} {what}");
        }
    }
    text
}

fn show_facts(rows: &[(&str, String)]) {
    paint::facts(rows).lines().for_each(|line| sayln!("  {line}"));
}

fn show_spreads(rows: &[(&str, &Option<Spread>)]) {
    let rows: Vec<_> = rows.iter().filter_map(|(label, spread)| Some((label, spread.as_ref()?))).collect();
    if rows.is_empty() {
        return;
    }
    let header = format!("    {:<22}{:>10}{:>10}{:>10}{:>10}", "ms", "p50", "p90", "p99", "max");
    sayln!("{}", paint::dim(&header));
    for (label, spread) in rows {
        let values = [spread.p50, spread.p90, spread.p99, spread.max];
        let values: String = values.iter().map(|value| format!("{:>10}", ms(*value))).collect();
        sayln!("    {:<22}{values}", label.trim_end_matches(" ms"));
    }
}

fn show_asked(asked: &AskedReport) {
    sayln!(
        "\n  {}  {}, {} with their reply",
        paint::bold("asker's side"),
        counted(asked.num_prompts, "prompt", "prompts"),
        paint::grouped(asked.num_matched)
    );
    let mut rows = Vec::new();
    if asked.num_without_reply > 0 {
        let named: Vec<String> = asked
            .without_reply
            .iter()
            .map(|prompt| format!("{} at {:.3} s", prompt.request_id, prompt.at_s))
            .collect();
        let text = format!("{}: {}", paint::grouped(asked.num_without_reply), named.join(", "));
        rows.push(("no reply", paint::red(&plain(&text))));
    }
    if asked.num_late_for_asker > 0 {
        let num = counted(asked.num_late_for_asker, "round trip was", "round trips were");
        let text = format!("{num} longer than the deadline");
        rows.push(("late", paint::yellow(&text)));
    }
    if asked.num_unnamed > 0 {
        rows.push((
            "unnamed",
            format!("{} without a request_id to match by", counted(asked.num_unnamed, "prompt", "prompts")),
        ));
    }
    if asked.num_replies_without_prompt > 0 {
        let num = counted(asked.num_replies_without_prompt, "reply", "replies");
        let text = format!("{num}: asked by service, by action, without a name, or before the recording");
        rows.push(("no prompt", text));
    }
    if asked.num_matched > 0 {
        rows.push(("times", format!("prompt to reply, {}", asked.times)));
    }
    show_facts(&rows);
    show_spreads(&[("round trip", &asked.round_trip_ms), ("beyond the node's total", &asked.overhead_ms)]);
}

fn show_stream(stream: &StreamReport) {
    sayln!(
        "\n  {}  {} of {}",
        paint::bold(&plain(&stream.topic)),
        counted(stream.num_messages, "message", "messages"),
        counted(stream.num_streams, "request", "requests")
    );
    let counts = [
        (stream.num_lost, "lost"),
        (stream.num_offset_jumps, "do not continue the text"),
        (stream.num_late, "out of order"),
        (stream.num_repeated, "repeated"),
        (stream.num_unended, "streams without an end"),
    ];
    for (num, what) in counts.into_iter().filter(|(num, _)| *num > 0) {
        sayln!("    {}", paint::yellow(&format!("{} {what}", paint::grouped(num))));
    }
    show_spreads(&[("between messages", &stream.between_ms)]);
}

fn show_worst(worst: &[Worst]) {
    if worst.is_empty() {
        return;
    }
    let header = format!(
        "\n  {:<16}{:<24}{:>10}{:>12}{:>12}  {:<12}{}",
        "worst", "request", "at s", "total ms", "deadline", "class", "status"
    );
    sayln!("{}", paint::dim(&header));
    for row in worst {
        let what = format!("{:<16}", row.what);
        let what = match row.what {
            "in time" => paint::green(&what),
            "late" => paint::yellow(&what),
            _ => paint::red(&what),
        };
        sayln!(
            "  {what}{:<24}{:>10.3}{:>12}{:>12}  {:<12}{}",
            plain(&row.request_id),
            row.at_s,
            ms(row.total_ms),
            row.deadline_ms.map_or_else(|| "-".to_owned(), ms),
            row.class.name(),
            row.status
        );
    }
}

/// `1 reply`, `2,000 replies`.
fn counted(num: u64, one: &str, many: &str) -> String {
    format!("{} {}", paint::grouped(num), if num == 1 { one } else { many })
}

/// Text from a bag without what a terminal would obey.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// Three digits or so.
fn ms(value: f64) -> String {
    if value.abs() >= 1000.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}
