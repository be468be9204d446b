// The rows of x, each with the same row of y behind it.

// workgroups: ceil(x_columns / 64), x_count

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> y: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let column = group.x * 64u + thread;
    if (column >= x_columns) {
        return;
    }
    let at = group.y * x_columns + column;
    let to = group.y * 2u * x_columns + column;
    out[to] = x[at];
    out[to + x_columns] = y[at];
}
