//! What was measured: cells, printed and saved as they come, and the tables made of them.

use std::{collections::BTreeMap, path::PathBuf};

use serde::Serialize;
use serde_json::json;

use super::{Part, facts::Facts, floors};
use crate::{hardware::Hardware, report, stats::Summary};

/// A figure of a cell beside its time; the text heads its column.
pub(super) mod figure {
    /// Time at the memory limit over the time measured.
    pub(in super::super) const MEMORY_SHARE: &str = "of memory limit";
    /// Rate of multiplications and additions over the rate of the datasheet.
    pub(in super::super) const MATRIX_SHARE: &str = "of matrix rate";
    /// Bytes that must be read, a second.
    pub(in super::super) const GB_PER_S: &str = "GB/s";
    /// Time of the device alone, in milliseconds.
    pub(in super::super) const DEVICE_MS: &str = "device ms";
    /// Time on the clock over that of the device.
    pub(in super::super) const OVER_DEVICE: &str = "x device";
    /// Text tokens a second.
    pub(in super::super) const TOKENS_PER_S: &str = "tokens/s";
    /// Text tokens a pass that scores a slot; AR has 1.
    pub(in super::super) const TOKENS_PER_PASS: &str = "tokens/pass";
    /// Passes that score a slot.
    pub(in super::super) const PASSES: &str = "passes";
    /// PyTorch's time over ours.
    pub(in super::super) const OVER_OURS: &str = "x ours";
    /// Prompts that were compared.
    pub(in super::super) const PROMPTS: &str = "prompts";
    /// Prompts with the same tokens throughout.
    pub(in super::super) const EQUAL: &str = "equal";
    /// Prompts that part at a tie.
    pub(in super::super) const TIES: &str = "ties";
    /// Everything else.
    pub(in super::super) const WRONG: &str = "wrong";
    /// Largest difference of a logit.
    pub(in super::super) const LARGEST_DIFFERENCE: &str = "largest logit difference";
    /// Bytes that a copy reads and writes, a second.
    pub(in super::super) const COPIED: &str = "copied GB/s";
    /// All, in the order of columns.
    pub(in super::super) const ALL: [&str; 15] = [
        MEMORY_SHARE,
        MATRIX_SHARE,
        GB_PER_S,
        DEVICE_MS,
        OVER_DEVICE,
        TOKENS_PER_S,
        TOKENS_PER_PASS,
        PASSES,
        OVER_OURS,
        PROMPTS,
        EQUAL,
        TIES,
        WRONG,
        LARGEST_DIFFERENCE,
        COPIED,
    ];
}

/// One thing that was measured, or the reason why not.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Cell {
    pub(super) part: Part,
    /// Name of the shape or built-in model; empty where none is meant.
    pub(super) model: String,
    pub(super) what: String,
    pub(super) rows: Option<usize>,
    pub(super) context: Option<usize>,
    /// Milliseconds of each round.
    pub(super) millis: Vec<f64>,
    pub(super) figures: BTreeMap<&'static str, f64>,
    /// Why there are no figures.
    pub(super) left_out: Option<String>,
}

impl Cell {
    pub(super) fn new(part: Part, model: &str, what: impl Into<String>) -> Self {
        Self {
            part,
            model: model.into(),
            what: what.into(),
            rows: None,
            context: None,
            millis: Vec::new(),
            figures: BTreeMap::new(),
            left_out: None,
        }
    }

    pub(super) fn at(self, rows: usize, context: usize) -> Self {
        Self { rows: Some(rows), context: Some(context), ..self }
    }

    pub(super) fn with(mut self, name: &'static str, value: f64) -> Self {
        self.figures.insert(name, value);
        self
    }

    pub(super) fn with_some(self, name: &'static str, value: Option<f64>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    /// Median of the rounds, in milliseconds.
    pub(super) fn median(&self) -> Option<f64> {
        Summary::of(&self.millis).map(|summary| summary.median)
    }

    fn columns(&self, names: &[&'static str]) -> Vec<String> {
        let number = |value: Option<usize>| value.map_or(String::new(), |value| value.to_string());
        let mut columns = vec![self.model.clone(), self.what.clone(), number(self.rows), number(self.context)];
        columns.push(match (&self.left_out, Summary::of(&self.millis)) {
            (Some(reason), _) => format!("left out: {}", reason.replace(['|', '\n'], " ")),
            (None, Some(Summary { min, median, max, .. })) => format!("{median:.4} ({min:.4}-{max:.4})"),
            (None, None) => String::new(),
        });
        columns
            .extend(names.iter().map(|name| self.figures.get(name).map_or(String::new(), |value| show(name, *value))));
        columns
    }
}

fn show(name: &str, value: f64) -> String {
    match name {
        figure::MEMORY_SHARE | figure::MATRIX_SHARE => format!("{:.1} %", 100.0 * value),
        figure::PROMPTS | figure::EQUAL | figure::TIES | figure::WRONG | figure::PASSES => format!("{value:.0}"),
        figure::DEVICE_MS => format!("{value:.4}"),
        figure::LARGEST_DIFFERENCE => format!("{value:.2e}"),
        figure::GB_PER_S | figure::COPIED | figure::TOKENS_PER_S => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// All cells of a run. Whatever ends the run, what was added is printed and saved.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) cells: Vec<Cell>,
    /// What a reader must know, by part.
    notes: Vec<(Part, String)>,
    facts: Facts,
    out: Option<PathBuf>,
    hardware: Hardware,
}

impl Log {
    pub(super) fn new(facts: Facts, out: Option<PathBuf>) -> Self {
        Self { cells: Vec::new(), notes: Vec::new(), facts, out, hardware: Hardware::read() }
    }

    /// Prints and saves a cell.
    pub(super) fn add(&mut self, cell: Cell) -> anyhow::Result<()> {
        let figures = cell.figures.iter().map(|(name, value)| format!("{name} {}", show(name, *value)));
        let head = cell.columns(&[]);
        println!("{:?} | {} | {}", cell.part, head.join(" | "), figures.collect::<Vec<_>>().join(", "));
        self.cells.push(cell);
        self.save()
    }

    /// Adds what a reader of a part must know, once.
    pub(super) fn note(&mut self, part: Part, text: impl Into<String>) {
        let note = (part, text.into());
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    /// The measured cell of a kind.
    pub(super) fn find(&self, part: Part, model: &str, what: &str, at: Option<(usize, usize)>) -> Option<&Cell> {
        self.cells.iter().find(|cell| {
            let is_there = at.is_none_or(|(rows, context)| cell.rows == Some(rows) && cell.context == Some(context));
            cell.part == part && cell.model == model && cell.what == what && is_there && cell.left_out.is_none()
        })
    }

    fn save(&self) -> anyhow::Result<()> {
        let Some(folder) = &self.out else { return Ok(()) };
        let raw = json!({
            "command": command(),
            "hardware": self.hardware,
            "device": self.facts,
            "cells": self.cells,
            "floors": floors::all(self),
        });
        report::save(folder, &self.summary(), &raw)
    }

    /// Everything, for people.
    pub(super) fn summary(&self) -> String {
        let mut text = format!(
            "# CUDA engine\n\n`{}`\n\ncommit {}, {} ({} cores)\n\n{}",
            command().join(" "),
            self.hardware.commit.as_deref().unwrap_or("unknown"),
            self.hardware.cpu,
            self.hardware.cores,
            self.facts.summary(),
        );
        for part in Part::ALL {
            let cells: Vec<&Cell> = self.cells.iter().filter(|cell| cell.part == part).collect();
            let mut notes = self.notes.iter().filter(|(of, _)| *of == part).peekable();
            if cells.is_empty() && notes.peek().is_none() {
                continue;
            }
            text.push_str(&format!("\n## {}\n\n", part.title()));
            notes.for_each(|(_, note)| text.push_str(&format!("- {note}\n")));
            if !cells.is_empty() {
                text.push_str(&table(&cells));
            }
        }
        text.push_str("\n## Floors\n\n");
        text.push_str(&floors::table(&floors::all(self), &self.facts));
        text
    }
}

fn table(cells: &[&Cell]) -> String {
    let names: Vec<&'static str> =
        figure::ALL.into_iter().filter(|name| cells.iter().any(|cell| cell.figures.contains_key(name))).collect();
    let mut head = vec!["model", "what", "rows", "context", "ms: median (min-max)"];
    head.extend(&names);
    let mut text = format!("\n| {} |\n|{}\n", head.join(" | "), "---|".repeat(head.len()));
    for cell in cells {
        text.push_str(&format!("| {} |\n", cell.columns(&names).join(" | ")));
    }
    text
}

fn command() -> Vec<String> {
    crate::report::command_words()
}
