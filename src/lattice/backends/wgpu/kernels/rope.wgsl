// Pairs of dimensions of every head turn by the angles of their position; what is beyond them passes through.

// workgroups: ceil(x_columns / 64), x_count

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> angles: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let column = group.x * 64u + thread;
    if (column >= x_columns) {
        return;
    }
    let at = group.y * x_columns + column;
    let i = column % head_dim;
    let pairs = angles_columns / 2u;
    if (i >= angles_columns) {
        out[at] = x[at];
        return;
    }
    let pair = select(i % pairs, i / 2u, interleaved);
    let is_first = select(i < pairs, i % 2u == 0u, interleaved);
    let apart = select(pairs, 1u, interleaved);
    let cosine = angles[group.y * angles_columns + pair];
    let sine = select(1.0, -1.0, inverse) * angles[group.y * angles_columns + pairs + pair];
    if (is_first) {
        out[at] = x[at] * cosine - x[at + apart] * sine;
    } else {
        out[at] = x[at] * cosine + x[at - apart] * sine;
    }
}
