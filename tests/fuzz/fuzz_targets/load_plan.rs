//! Any bytes as a plan: a clear answer in bounded time and memory, never a panic, and every
//! problem can be drawn beneath its line.

#![no_main]

use lifeboat::plan::load::{Options, load_text};
use miette::{GraphicalReportHandler, GraphicalTheme};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let loaded = load_text("fuzz.yaml", bytes, &Options::default());
    assert!(loaded.plan.is_some() || !loaded.problems.is_empty(), "refused without a reason");
    let handler = GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor());
    for problem in loaded.problems.iter().take(20) {
        let mut drawn = String::new();
        handler.render_report(&mut drawn, problem).unwrap();
    }
});
