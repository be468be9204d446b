// Positions that count from padding + 1 and leave padding tokens out: one workgroup a sequence, one thread a token.

// workgroups: step_S

@group(0) @binding(0) var<storage, read> inputs: array<u32>;
@group(0) @binding(1) var<storage, read_write> out: array<u32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let begin = inputs[step_offsets + group.x];
    let end = inputs[step_offsets + group.x + 1u];
    for (var t = begin + thread; t < end; t += 64u) {
        var skipped = 0u;
        for (var before = begin; before < t; before++) {
            skipped += u32(inputs[step_tokens + before] == padding);
        }
        let kept = max(0, i32(inputs[step_positions + t]) - i32(skipped) + 1);
        out[t] = padding + select(u32(kept), 0u, inputs[step_tokens + t] == padding);
    }
}
