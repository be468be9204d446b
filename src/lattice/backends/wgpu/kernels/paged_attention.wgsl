// Attention through the page table: a workgroup takes a token and a head of keys with four of the query heads that read
// it (one block of them after another), one page of 64 keys at a time, so that these share what is loaded. Four numbers
// side by side are those of four query heads.
// With a gate, the projection whose heads are pairs of a query and a gate, each head is multiplied by its sigmoid.
// `few`: workgroups share the pages of a token, one token's all of them and each of several a part; `merge` puts their
// parts together, where there are two or more: a part that is the whole is put out as it is.
// The running maximum and sum follow Milakov and Gimelshein (2018): what was summed is scaled when the maximum grows.

// workgroups: q_count, k_pages_1
// workgroups few: 128, k_pages_1, q_count
// workgroups merge: q_count, ceil(q_columns / k_pages_dim), ceil(k_pages_dim / 64)
// scratch: ceil(128 * q_columns * k_pages_part / k_pages_dim)

@group(0) @binding(0) var<storage, read> inputs: array<u32>;
@group(0) @binding(1) var<storage, read> q: array<f32>;
@group(0) @binding(2) var<storage, read> k_pages: array<u32>;
@group(0) @binding(3) var<storage, read> v_pages: array<u32>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;
@group(0) @binding(5) var<storage, read_write> scratch: array<f32>;
@group(0) @binding(6) var<storage, read> gate: array<f32>;

const row_width = k_pages_2;
const head_dim = k_pages_dim;
const heads = q_columns / head_dim;
const READERS = heads / k_pages_1;  // query heads that read one head of keys
const SPLITS = 128u;
const LOWEST = -3.4e38;
const GROUP = 256u;
const STORED = select(select(1u, 2u, k_pages_f16), 4u, k_pages_i8);  // numbers in a word of the pools

// Keys lie side by side: a thread takes the keys of one word of a row, and of every so manieth row.
const KEY_WORDS = 64u / STORED;
const KEY_TEAMS = GROUP / KEY_WORDS;
const KEY_ROWS = (head_dim + KEY_TEAMS - 1u) / KEY_TEAMS;
// Dimensions of a value lie side by side: a thread takes a word of a row, or one number, of every so manieth row.
const PER = select(1u, STORED, head_dim % STORED == 0u);
const WIDE = head_dim / PER;
const OWN = (WIDE + GROUP - 1u) / GROUP;
const VALUE_TEAMS = select(select(select(select(1u, 2u, WIDE <= 128u), 4u, WIDE <= 64u), 8u, WIDE <= 32u),
    16u, WIDE <= 16u);
const VALUE_ROWS = 64u / VALUE_TEAMS;
const RESULTS = (head_dim + GROUP - 1u) / GROUP;  // that a thread puts out

var<workgroup> query: array<vec4<f32>, head_dim>;
var<workgroup> parts: array<vec4<f32>, max(64u * KEY_TEAMS, VALUE_TEAMS * head_dim)>;
var<workgroup> numbers: array<vec4<f32>, 64>;  // scores of 64 keys, then what they weigh
var<workgroup> some: array<vec4<f32>, 8>;  // of eight of them each
var<private> own: array<vec4<f32>, OWN * PER>;  // this thread's dimensions of what was summed

// The sequence that a token of the step belongs to.
fn sequence_of(token: u32) -> u32 {
    var low = 0u;
    var high = inputs[step_S];
    while (high - low > 1u) {
        let middle = (low + high) / 2u;
        if (inputs[step_offsets + middle] <= token) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

// The numbers of a word as it is stored.
fn unpacked(word: u32) -> vec4<f32> {
    if (k_pages_f16) {
        return vec4<f32>(unpack2x16float(word), 0.0, 0.0);
    }
    if (k_pages_i8) {
        return vec4<f32>(unpack4xI8(word));
    }
    return vec4<f32>(bitcast<f32>(word), 0.0, 0.0, 0.0);
}

// How far the gate of a dimension is open.
fn opened(token: u32, head: u32, d: u32) -> f32 {
    if (!has_gate) {
        return 1.0;
    }
    return 1.0 / (1.0 + exp(-gate[2u * token * q_columns + (2u * head + 1u) * head_dim + d]));
}

// The pages that hold what a token sees: the first, and the one behind the last.
fn pages_of(token: u32) -> vec2<u32> {
    let end = inputs[step_positions + token] + 1u;
    let first = select(0u, end - min(end, window), window > 0u);
    return vec2<u32>(first / 64u, (end + 63u) / 64u);
}

// The queries of a block of heads, and nothing where there is no such head.
fn bring_queries(token: u32, first_head: u32, last_head: u32, thread: u32) {
    for (var d = thread; d < head_dim; d += GROUP) {
        var found = vec4<f32>();
        for (var h = 0u; h < 4u; h++) {
            found[h] = q[token * q_columns + min(first_head + h, last_head) * head_dim + d] * scale;
        }
        query[d] = select(vec4<f32>(), found, first_head + vec4<u32>(0u, 1u, 2u, 3u) <= vec4<u32>(last_head));
    }
}

// The largest of 64 numbers, for each of four heads.
fn largest(thread: u32) -> vec4<f32> {
    if (thread < 8u) {
        var most = numbers[thread];
        for (var i = 1u; i < 8u; i++) {
            most = max(most, numbers[thread + 8u * i]);
        }
        some[thread] = most;
    }
    workgroupBarrier();
    var most = some[0];
    for (var i = 1u; i < 8u; i++) {
        most = max(most, some[i]);
    }
    return most;
}

struct Found {
    maximum: vec4<f32>,
    sum: vec4<f32>,  // of this thread's keys
}

// Attend to every so manieth page; what was summed stands in `own`.
fn attend(token: u32, kv_head: u32, first_page: u32, end_page: u32, every: u32, thread: u32) -> Found {
    let table = step_page_table + sequence_of(token) * step_width;
    let end = inputs[step_positions + token] + 1u;
    let first = select(0u, end - min(end, window), window > 0u);
    let key_word = thread % KEY_WORDS;
    let key_team = thread / KEY_WORDS;
    let value_word = thread % (GROUP / VALUE_TEAMS);
    let value_team = thread / (GROUP / VALUE_TEAMS);
    let place = thread % 64u;  // of the scores that the first 64 threads add up
    let key = place % KEY_WORDS * STORED + place / KEY_WORDS;
    for (var i = 0u; i < OWN * PER; i++) {
        own[i] = vec4<f32>();
    }
    var found = Found(vec4<f32>(LOWEST), vec4<f32>());
    var next = inputs[table + first_page];
    for (var number = first_page; number < end_page; number += every) {
        let page = (next * k_pages_1 + kv_head) * row_width * 64u;
        next = inputs[table + min(number + every, end_page - 1u)];
        let start = number * 64u;
        // What is not seen weighs nothing, but what lies there may be no number: then another row is read.
        let lowest = select(0u, first - start, first > start);
        let highest = min(64u, end - start) - 1u;
        // All values of the page are under way while its keys are looked at.
        var values = array<u32, VALUE_ROWS * OWN>();
        for (var i = 0u; i < VALUE_ROWS; i++) {
            let row = clamp(i * VALUE_TEAMS + value_team, lowest, highest);
            for (var o = 0u; o < OWN; o++) {
                let at = page + row * row_width + min(o * GROUP + value_word, WIDE - 1u) * PER;
                values[i * OWN + o] = v_pages[at / STORED] >> select(0u, at % STORED * (32u / STORED), PER < STORED);
            }
        }
        var factors = vec2<f32>(1.0);
        if (k_pages_i8) {
            factors.x = bitcast<f32>(k_pages[page / 4u + head_dim * 16u + key]);
            factors.y = bitcast<f32>(v_pages[(page + key * row_width + head_dim) / 4u]);
        }
        var sums = array<vec4<f32>, STORED>();
        for (var i = 0u; i < KEY_ROWS; i++) {
            let d = i * KEY_TEAMS + key_team;
            if (head_dim % KEY_TEAMS == 0u || d < head_dim) {
                let keys = unpacked(k_pages[(page + d * 64u) / STORED + key_word]);
                for (var j = 0u; j < STORED; j++) {
                    sums[j] += keys[j] * query[d];
                }
            }
        }
        for (var j = 0u; j < STORED; j++) {
            parts[key_team * 64u + j * KEY_WORDS + key_word] = sums[j];
        }
        workgroupBarrier();
        let seen = thread < 64u && key >= lowest && key <= highest;
        var score = vec4<f32>(LOWEST);
        if (thread < 64u) {
            var sum = vec4<f32>();
            for (var team = 0u; team < KEY_TEAMS; team++) {
                sum += parts[team * 64u + place];
            }
            score = select(score, sum * factors.x, seen);
            numbers[key] = score;
        }
        workgroupBarrier();
        let grown = max(found.maximum, largest(thread));
        let shrink = exp(found.maximum - grown);
        found.maximum = grown;
        if (thread < 64u) {
            let probability = select(vec4<f32>(), exp(score - grown), seen);
            found.sum = found.sum * shrink + probability;
            numbers[key] = select(vec4<f32>(), probability * factors.y, seen);
        }
        workgroupBarrier();
        for (var i = 0u; i < OWN * PER; i++) {
            own[i] *= shrink;
        }
        for (var i = 0u; i < VALUE_ROWS; i++) {
            let weight = numbers[i * VALUE_TEAMS + value_team];
            for (var o = 0u; o < OWN; o++) {
                let value = unpacked(values[i * OWN + o]);
                for (var j = 0u; j < PER; j++) {
                    own[o * PER + j] += value[j] * weight;
                }
            }
        }
    }
    return found;
}

// Put every thread's part into `parts`, and return the sums of the probabilities of four heads.
fn gather(sum: vec4<f32>, thread: u32) -> vec4<f32> {
    workgroupBarrier();
    let value_word = thread % (GROUP / VALUE_TEAMS);
    let value_team = thread / (GROUP / VALUE_TEAMS);
    for (var o = 0u; o < OWN; o++) {
        for (var j = 0u; j < PER; j++) {
            let d = (o * GROUP + value_word) * PER + j;
            if (d < head_dim) {
                parts[value_team * head_dim + d] = own[o * PER + j];
            }
        }
    }
    if (thread < 64u) {
        numbers[thread] = sum;
    }
    workgroupBarrier();
    if (thread < 8u) {
        var whole = vec4<f32>();
        for (var i = 0u; i < 8u; i++) {
            whole += numbers[thread + 8u * i];
        }
        some[thread] = whole;
    }
    workgroupBarrier();
    var whole = vec4<f32>();
    for (var i = 0u; i < 8u; i++) {
        whole += some[i];
    }
    return whole;
}

// Attend to every so manieth page of a token with all query heads that read a head of keys. What that gives is put out,
// or, of one of several splits, left in `scratch`.
fn attend_all(token: u32, kv_head: u32, split: u32, splits: u32, thread: u32) {
    let pages = pages_of(token);
    let last_head = kv_head * READERS + READERS - 1u;
    for (var first_head = kv_head * READERS; first_head <= last_head; first_head += 4u) {
        let some_heads = min(4u, last_head + 1u - first_head);
        // What comes last needs the gates: they are under way from the begin.
        var gates = array<vec4<f32>, RESULTS>();
        for (var i = 0u; has_gate && splits == 1u && i < RESULTS; i++) {
            let d = min(i * GROUP + thread, head_dim - 1u);
            for (var h = 0u; h < 4u; h++) {
                gates[i][h] = opened(token, min(first_head + h, last_head), d);
            }
        }
        bring_queries(token, first_head, last_head, thread);
        workgroupBarrier();
        let found = attend(token, kv_head, pages.x + split, pages.y, splits, thread);
        let whole = gather(found.sum, thread);
        let part = (token * most_splits() + split) * heads + first_head;
        for (var i = 0u; i < RESULTS; i++) {
            let d = i * GROUP + thread;
            if (d >= head_dim) {
                continue;
            }
            var value = vec4<f32>();
            for (var team = 0u; team < VALUE_TEAMS; team++) {
                value += parts[team * head_dim + d];
            }
            let result = value / whole * select(vec4<f32>(1.0), gates[i], has_gate);
            for (var h = 0u; h < 4u; h++) {
                if (h < some_heads && splits == 1u) {
                    out[token * q_columns + (first_head + h) * head_dim + d] = result[h];
                } else if (h < some_heads) {
                    scratch[(part + h) * head_dim + d] = value[h];
                }
            }
        }
        for (var h = 0u; h < 4u; h++) {
            if (h < some_heads && splits > 1u && thread == h) {
                let at = SPLITS * q_columns + 2u * (part + h);
                scratch[at] = found.maximum[h];
                scratch[at + 1u] = whole[h];
            }
        }
        workgroupBarrier();
    }
}

// Splits of each token of a step of few, so that all have room.
fn most_splits() -> u32 {
    return SPLITS / inputs[q_count];
}

// Splits of a token that have pages.
fn splits_of(token: u32) -> u32 {
    let pages = pages_of(token);
    return min(pages.y - pages.x, most_splits());
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    attend_all(group.x, group.y, 0u, 1u, thread);
}

@compute @workgroup_size(256)
fn few(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let splits = splits_of(group.z);
    if (group.x < splits) {
        attend_all(group.z, group.y, group.x, splits, thread);
    }
}

const TEAMS = 4u;  // of 64 threads, a dimension each, that share the splits
var<workgroup> highest: array<f32, SPLITS>;
var<workgroup> some_highest: array<f32, 16>;
var<workgroup> factors: array<vec2<f32>, SPLITS>;  // what a split is scaled by, and its share of the sum
var<workgroup> merged: array<vec2<f32>, GROUP>;

@compute @workgroup_size(256)
fn merge(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let splits = splits_of(group.x);
    if (splits == 1u) {
        return;
    }
    let part = group.x * most_splits() * heads + group.y;
    let d = group.z * 64u + thread % 64u;
    let open = opened(group.x, group.y, min(d, head_dim - 1u));
    var maximum = LOWEST;
    var sum = 0.0;
    if (thread < splits) {
        let at = SPLITS * q_columns + 2u * (part + thread * heads);
        maximum = scratch[at];
        sum = scratch[at + 1u];
    }
    if (thread < SPLITS) {
        highest[thread] = maximum;
    }
    workgroupBarrier();
    if (thread < 16u) {
        var most = highest[thread];
        for (var i = 1u; i < SPLITS / 16u; i++) {
            most = max(most, highest[thread + 16u * i]);
        }
        some_highest[thread] = most;
    }
    workgroupBarrier();
    var most = some_highest[0];
    for (var i = 1u; i < 16u; i++) {
        most = max(most, some_highest[i]);
    }
    if (thread < SPLITS) {
        let factor = exp(maximum - most);
        factors[thread] = vec2<f32>(factor, factor * sum);
    }
    workgroupBarrier();
    var total = vec2<f32>();
    for (var split = thread / 64u; split < splits; split += 4u * TEAMS) {
        // Four loads at a time are under way together.
        var values = array<f32, 4>();
        for (var i = 0u; i < 4u; i++) {
            let at = min(split + i * TEAMS, splits - 1u);
            values[i] = scratch[(part + at * heads) * head_dim + min(d, head_dim - 1u)];
        }
        for (var i = 0u; i < 4u; i++) {
            if (split + i * TEAMS < splits) {
                let factor = factors[split + i * TEAMS];
                total += vec2<f32>(factor.x * values[i], factor.y);
            }
        }
    }
    merged[thread] = total;
    workgroupBarrier();
    if (thread < 64u && d < head_dim) {
        let all = merged[thread] + merged[thread + 64u] + merged[thread + 128u] + merged[thread + 192u];
        out[group.x * q_columns + group.y * head_dim + d] = all.x / all.y * open;
    }
}
