//! Lists the SQL files under `migrations/` so that each of them is compiled in: nobody can forget one.

use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs};

fn main() {
    let root = env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    let mut code = String::new();
    for kind in ["catalog", "shard"] {
        let dir = Path::new(&root).join("migrations").join(kind);
        println!("cargo:rerun-if-changed={}", dir.display());
        let _ = writeln!(code, "const {}: &[Migration] = &[", kind.to_uppercase());
        for (position, name) in file_names(&dir).iter().enumerate() {
            let number = number_of(name);
            assert_eq!(number, position + 1, "{kind}/{name}: numbers must run 0001, 0002, ... without a gap");
            let path = dir.join(name);
            println!("cargo:rerun-if-changed={}", path.display());
            let stem = name.trim_end_matches(".sql");
            let _ = writeln!(
                code,
                "    Migration {{ number: {number}, name: {stem:?}, sql: include_str!({:?}) }},",
                path.display().to_string()
            );
        }
        let _ = writeln!(code, "];");
    }
    let out = Path::new(&env::var("OUT_DIR").expect("cargo sets OUT_DIR")).join("migrations.rs");
    fs::write(out, code).expect("cannot write the list of migrations");
}

fn file_names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap_or_else(|error| panic!("{}: {error}", dir.display()))
        .map(|entry| entry.expect("readable directory").file_name().to_string_lossy().into_owned())
        .filter(|name| name.ends_with(".sql"))
        .collect();
    names.sort();
    assert!(!names.is_empty(), "{}: no migrations", dir.display());
    names
}

fn number_of(name: &str) -> usize {
    let (digits, _) = name.split_once('_').unwrap_or_else(|| panic!("{name}: expected NNNN_what.sql"));
    assert_eq!(digits.len(), 4, "{name}: expected NNNN_what.sql");
    digits.parse().unwrap_or_else(|_| panic!("{name}: expected NNNN_what.sql"))
}
