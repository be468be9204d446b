// The causal convolution of each channel, each sequence going on from its slot (conv1d: from zeros). A workgroup takes 16
// channels of one sequence, 16 tokens at a time; a slot is read before it is saved to.

// workgroups: ceil(x_columns / 16), step_S

@group(0) @binding(0) var<storage, read> inputs: array<u32>;
@group(0) @binding(1) var<storage, read_write> state: array<f32>;
@group(0) @binding(2) var<storage, read> x: array<f32>;
@group(0) @binding(3) var<storage, read> weight: array<f32>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;

const width = weight_1;

const SQRT_HALF = 0.70710678118654752;

// 1 - erf(|x|) by 7.1.26 of Abramowitz and Stegun, whose error is at most 1.5e-7.
fn erf_rest(x: f32) -> f32 {
    let t = 1.0 / (1.0 + 0.3275911 * abs(x));
    let series = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t;
    return series * exp(-x * x);
}

fn activate(x: f32) -> f32 {
    if (kind_none) {
        return x;
    }
    if (kind_silu) {
        return x / (1.0 + exp(-x));
    }
    if (kind_sigmoid) {
        return 1.0 / (1.0 + exp(-x));
    }
    if (kind_relu) {
        return max(x, 0.0);
    }
    if (kind_gelu) {
        let rest = erf_rest(x * SQRT_HALF);
        return 0.5 * x * select(rest, 2.0 - rest, x > 0.0);
    }
    // tanh overflows on some cards where its argument is large
    let inner = clamp(0.7978845608028654 * (x + 0.044715 * x * x * x), -20.0, 20.0);
    return 0.5 * x * (1.0 + tanh(inner));
}

// An input of the sequence; those before its first token are the slot's.
fn input_at(begin: u32, back: i32, channel: u32, past: ptr<function, array<f32, width>>) -> f32 {
    if (back < 0) {
        return (*past)[u32(back + i32(width) - 1)];
    }
    return x[(begin + u32(back)) * x_columns + channel];
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let channel = group.x * 16u + thread % 16u;
    let begin = inputs[step_offsets + group.y];
    let end = inputs[step_offsets + group.y + 1u];
    var past: array<f32, width>;
    if (has_state && channel < x_columns && begin < end && inputs[step_positions + begin] > 0u) {
        let slot = (inputs[step_slots + group.y] * x_columns + channel) * (width - 1u);
        for (var j = 0u; j + 1u < width; j++) {
            past[j] = state[slot + j];
        }
    }
    storageBarrier();
    for (var t = begin + thread / 16u; t < end && channel < x_columns; t += 16u) {
        let first = i32(t - begin) - i32(width) + 1;
        var sum = 0.0;
        for (var j = 0u; j < width; j++) {
            sum += input_at(begin, first + i32(j), channel, &past) * weight[channel * width + j];
        }
        out[t * x_columns + channel] = activate(sum);
        if (has_state) {
            var kept = bitcast<i32>(inputs[step_saves + t]);
            for (var later = t + 1u; kept >= 0 && later < end; later++) {  // of two that save to a slot the later counts
                kept = select(kept, -1, bitcast<i32>(inputs[step_saves + later]) == kept);
            }
            let slot = (u32(max(kept, 0)) * x_columns + channel) * (width - 1u);
            for (var j = 0u; kept >= 0 && j + 1u < width; j++) {
                state[slot + j] = input_at(begin, first + i32(j) + 1, channel, &past);
            }
        }
    }
}
