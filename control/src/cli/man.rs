//! Manual pages. Their synopsis is the usage that `--help` shows: with the values that options take, and without those that all commands have.

use std::io::{self, Write};
use std::path::Path;

use clap::Command;
use clap_mangen::Man;

use crate::api::VERSION;

/// Writes the pages of a command and all below it into a directory, which is made if it is missing.
pub(super) fn write_all(command: Command, dir: &Path) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    write_below(&whole(command), dir)
}

/// The page of the command itself.
pub(super) fn page(command: Command) -> io::Result<Vec<u8>> {
    render(&whole(command)).map(|(_, page)| page)
}

fn whole(command: Command) -> Command {
    let mut command = command.disable_help_subcommand(true);
    command.build();
    command
}

fn write_below(command: &Command, dir: &Path) -> io::Result<()> {
    command.get_subcommands().filter(|command| !command.is_hide_set()).try_for_each(|below| write_below(below, dir))?;
    let (name, page) = render(command)?;
    std::fs::write(dir.join(name), page)
}

/// A page, and the name of its file.
fn render(command: &Command) -> io::Result<(String, Vec<u8>)> {
    let man = Man::new(command.clone()).source(format!("weft {VERSION}"));
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    // No macro begins a line of it, and no backslash is in it.
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage:").split_whitespace().collect::<Vec<_>>().join(" ");
    writeln!(page, ".SH SYNOPSIS\n{}", usage.replace('-', "\\-"))?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    man.render_version_section(&mut page)?;
    Ok((man.get_filename(), page))
}
