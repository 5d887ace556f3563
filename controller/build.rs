//! Embeds the dashboard anew when it was built again.

fn main() {
    println!("cargo::rerun-if-changed=dashboard/dist");
}
