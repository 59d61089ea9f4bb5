//! A config file: refused, or a config.

#![no_main]

use derrick::config::WorkspaceConfig;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match WorkspaceConfig::from_json(text, "config.json") {
        // What was taken can be told again.
        Ok(config) => drop(serde_json::to_string(&config).expect("a config is JSON")),
        Err(error) => drop(error.to_string()),
    }
});
