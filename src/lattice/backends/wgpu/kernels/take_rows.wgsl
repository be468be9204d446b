// The rows that are wanted.

// workgroups: ceil(x_columns / 64), rows_count

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> rows: array<u32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let column = group.x * 64u + thread;
    if (column >= x_columns) {
        return;
    }
    out[group.y * x_columns + column] = x[rows[group.y] * x_columns + column];
}
