//! Links `src/ops/malloc.c` into the program: what that sets must be set before the first thread, by a function that
//! Rust has not, and no line of Rust here is `unsafe`.

fn main() {
    let source = "src/ops/malloc.c";
    println!("cargo:rerun-if-changed={source}");
    for object in cc::Build::new().file(source).compile_intermediates() {
        println!("cargo:rustc-link-arg-bins={}", object.display());
    }
}
