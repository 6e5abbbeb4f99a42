//! The README's table of the library names a test for each row, and the tests are there.
#![allow(clippy::unwrap_used, clippy::expect_used)] // A test that cannot read fails.

use std::fs;
use std::path::{Path, PathBuf};

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The columns of each row between the marks.
fn rows() -> Vec<Vec<String>> {
    let readme = fs::read_to_string(workspace().join("README.md")).unwrap();
    let (_, after) = readme.split_once("<!-- rows -->\n").unwrap();
    let (table, _) = after.split_once("<!-- /rows -->").unwrap();
    let columns = |line: &str| {
        let columns = line.trim_matches('|').split('|');
        columns.map(|column| column.trim().to_owned()).collect()
    };
    table.lines().skip(2).map(columns).collect()
}

/// What stands between backticks.
fn words(column: &str) -> impl Iterator<Item = &str> {
    column.split('`').skip(1).step_by(2)
}

/// The sources that the first part of a test's name stands for.
fn sources(module: &str) -> Vec<PathBuf> {
    let dir = |path: &str| {
        let entries = fs::read_dir(workspace().join(path)).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    };
    match module {
        "sys" => dir("crates/sys/src"),
        "cli" => dir("tests/cli"),
        "rootless" | "metric_server" => vec![workspace().join(format!("tests/{module}.rs"))],
        _ => {
            let path = format!("crates/sandbox/tests/sandbox/{module}.rs");
            vec![workspace().join(path)]
        }
    }
}

fn is_there(test: &str) -> bool {
    let (module, name) = test.split_once("::").unwrap_or(("", test));
    let defined = format!("fn {name}()");
    let has = |path: &PathBuf| fs::read_to_string(path).is_ok_and(|text| text.contains(&defined));
    sources(module).iter().any(has)
}

#[test]
fn every_row_of_the_library_names_tests_that_are_there() {
    for row in rows() {
        let [of_gvisor, _, tests] = &row[..] else {
            panic!("not three columns: {row:?}");
        };
        let mut named = words(tests).peekable();
        assert!(named.peek().is_some(), "{of_gvisor} has no test");
        for test in named {
            assert!(is_there(test), "{of_gvisor}: there is no test {test}");
        }
    }
}

#[test]
fn every_item_of_gvisors_package_has_a_row() {
    const ITEMS: &str = "ConfigureCmdForRootless SetCloExeOnAllFDs SetUserMappings New StartRoot \
        CreateSubcontainer StartSubcontainer DestroyContainer Execute Wait WaitPID \
        SignalContainer SignalProcess Pause Resume Processes Event ContainerRuntimeState Usage \
        UsageFD Checkpoint Restore Mount PortForward CgroupsReadControlFile \
        CgroupsWriteControlFile NewCGroup Getpid IsRunning IsRootContainer GetRegisteredMetrics \
        ExportMetrics CreateTraceSession DeleteTraceSession ListTraceSessions ProcfsDump Stacks \
        CPUProfile HeapProfile BlockProfile MutexProfile Trace ChangeLogging Args.ConsoleSocket \
        Args.UserLog Args.MountsFile Args.MountHints Args.Attached Args.PassFiles Args.ExecFile \
        Args.IOFiles Args.GoferFilestoreFiles";
    let rows = rows();
    let named: Vec<&str> = rows.iter().flat_map(|row| words(&row[0])).collect();
    for item in ITEMS.split_whitespace() {
        assert!(named.contains(&item), "{item} has no row");
    }
}
