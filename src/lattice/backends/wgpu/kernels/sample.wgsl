// One token a row: edits, temperature, top-k, min-p, top-p and the draw. In the order of falling logits (equal ones by id) each
// limit, and the draw itself, is the first token at which a sum of weights, or a count, reaches a number.
// `main`: a workgroup for 4,096 tokens of a row edits their logits and finds the largest and the least.
// `then`: the same tokens into bins by how far they lie below the row's largest: ids in the order of their bins, and for
//     each bin its tokens and their sum. Sums are of integers, so that the order in which threads come is nothing.
// `then2`: a workgroup a row adds the bins up. In the bin in which a number is reached the tokens go into slots by the bits
//     of their logit, those of the slot in which it is reached again, until they are equal, and these by their ids.
// Bins end where a weight is e^-32 of the largest: all that lies beyond is less than what an f32 of the sum can tell. They
// are as fine as the row's logits allow, so that flat rows have small bins, too. What has no weight (min-p) is in none.

// workgroups: ceil(logits_columns / 4096), logits_count
// workgroups then: ceil(logits_columns / 4096), logits_count
// workgroups then2: logits_count
// scratch: logits_count * logits_stride * 3 + logits_count * 2048

@group(0) @binding(0) var<storage, read> inputs: array<u32>;
@group(0) @binding(1) var<storage, read> logits: array<f32>;
@group(0) @binding(2) var<storage, read_write> scratch: array<u32>;
@group(0) @binding(3) var<storage, read_write> out: array<u32>;

const vocab = logits_columns;
const NONE = 0xffffffffu;
const SHARE = 4096u;  // tokens of a workgroup
const EACH = SHARE / 256u;
const SHARES = (vocab + SHARE - 1u) / SHARE;
const BINS = 1024u;
const LAST = BINS - 1u;  // the bin of what has no weight
const OWN = BINS / 256u;  // bins of a thread
const REACH = 32.0;  // exp(-REACH): what weighs nothing
const MOST = 1536u;  // tokens of a bin that are held; of a larger one the whole row is read
// A row of scratch memory: logits, ids in the order of their bins, for each share its bins' tokens and sums, and then its
// largest token, as key and id, and its least logit. Bin b stands where b / OWN is the thread that comes to read it.
const ROW = logits_stride * 3u + 2048u;
const ORDER = vocab;
const TABLES = 2u * vocab;
const BESTS = TABLES + SHARES * 2u * BINS;

// A place in the order: bits that grow as the logit falls, and an id.
struct Place {
    key: u32,
    id: u32,
}

fn number(field: u32, row: u32) -> f32 {
    return bitcast<f32>(inputs[field + row]);
}

const LOWEST = 0xff800000u;  // the key of minus infinity
const HIGHEST = 0x007fffffu;  // of infinity

// Bits that grow as the number falls; what is no number counts as minus infinity.
fn key_of(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return LOWEST;
    }
    return select(~bits & 0x7fffffffu, bits, bits > 0x80000000u);  // -0 equals 0
}

fn number_of(key: u32) -> f32 {
    return bitcast<f32>(select(~key & 0x7fffffffu, key, key >= 0x80000000u));
}

var<workgroup> mins: array<vec4<u32>, 256>;

// The least of each of four numbers.
fn least_of_all(mine: vec4<u32>, thread: u32) -> vec4<u32> {
    workgroupBarrier();
    mins[thread] = mine;
    workgroupBarrier();
    var least = mine;
    if (thread < 16u) {
        for (var i = thread + 16u; i < 256u; i += 16u) {
            least = min(least, mins[i]);
        }
        mins[thread] = least;
    }
    workgroupBarrier();
    least = mins[0];
    for (var i = 1u; i < 16u; i++) {
        least = min(least, mins[i]);
    }
    return least;
}

var<workgroup> parts: array<vec2<f32>, 272>;  // 17 for 16 threads, in other banks than the next 16

// The sums of what threads before this one have, always added up in one order.
fn sum_before(value: vec2<f32>, thread: u32) -> vec2<f32> {
    workgroupBarrier();
    parts[thread + thread / 16u] = value;
    workgroupBarrier();
    var sum = vec2<f32>();
    if (thread < 16u) {
        for (var i = 17u * thread; i < 17u * thread + 16u; i++) {
            sum += parts[i];
            parts[i] = sum;
        }
    }
    workgroupBarrier();
    sum = vec2<f32>();
    for (var group = 0u; group < thread / 16u; group++) {
        sum += parts[17u * group + 15u];
    }
    if (thread % 16u > 0u) {
        sum += parts[thread + thread / 16u - 1u];
    }
    return sum;
}

// The largest token, and keys: of the least logit, and of the share whose least is largest.
struct Ends {
    best: Place,
    far: u32,
    near: u32,
}

fn ends_of_all(mine: Ends, thread: u32) -> Ends {
    let all = least_of_all(vec4<u32>(mine.best.key, ~mine.far, mine.near, 0u), thread);
    let id = select(vocab, mine.best.id, mine.best.key == all.x);
    return Ends(Place(all.x, least_of_all(vec4<u32>(id), thread).x), ~all.y, all.z);
}

fn ends_of_row(row: u32, thread: u32) -> Ends {
    var mine = Ends(Place(NONE, vocab), 0u, NONE);
    for (var share = thread; share < SHARES; share += 256u) {
        let at = row * ROW + BESTS + 3u * share;
        if (scratch[at] < mine.best.key) {
            mine.best = Place(scratch[at], scratch[at + 1u]);
        }
        let least = scratch[at + 2u];
        mine.far = max(mine.far, least);
        mine.near = min(mine.near, select(least, NONE, least == 0u));
    }
    return ends_of_all(mine, thread);
}

fn is_finite(key: u32) -> bool {
    return key > HIGHEST && key < LOWEST;
}

// A logit with its edits.
fn edited(row: u32, id: u32) -> f32 {
    return bitcast<f32>(scratch[row * ROW + id]);
}

// The product of two words, as (low, high).
fn wide(a: u32, b: u32) -> vec2<u32> {
    let a0 = a & 0xffffu;
    let a1 = a >> 16u;
    let b0 = b & 0xffffu;
    let b1 = b >> 16u;
    let middle = a1 * b0 + ((a0 * b0) >> 16u);
    let other = a0 * b1 + (middle & 0xffffu);
    return vec2<u32>(a * b, a1 * b1 + (middle >> 16u) + (other >> 16u));
}

fn times(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    let low = wide(a.x, b.x);
    return vec2<u32>(low.x, low.y + a.x * b.y + a.y * b.x);
}

fn plus(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    let low = a.x + b.x;
    return vec2<u32>(low, a.y + b.y + u32(low < a.x));
}

fn mixed(z: vec2<u32>, by: u32) -> vec2<u32> {  // z ^ (z >> by), by < 32
    return z ^ vec2<u32>((z.x >> by) | (z.y << (32u - by)), z.y >> by);
}

// The number in [0, 1) of a seed and a position: the finaliser of splitmix64.
fn uniform_of(row: u32) -> f32 {
    let seed = vec2<u32>(inputs[sampling_seed + 2u * row], inputs[sampling_seed + 2u * row + 1u]);
    let count = vec2<u32>(inputs[sampling_position + row] + 1u, 0u);
    var z = plus(seed, times(vec2<u32>(0x7f4a7c15u, 0x9e3779b9u), count));
    z = times(mixed(z, 30u), vec2<u32>(0x1ce4e5b9u, 0xbf58476du));
    z = times(mixed(z, 27u), vec2<u32>(0x133111ebu, 0x94d049bbu));
    z = mixed(z, 31u);
    return f32(z.y >> 8u) / 16777216.0;
}

fn token_at(share: u32, i: u32, thread: u32) -> u32 {
    return share * SHARE + i * 256u + thread;
}

var<workgroup> logit: array<f32, SHARE>;

// Edit those logits of a row that are in this share.
fn edit(row: u32, share: u32, thread: u32) {
    let factor = number(sampling_repetition, row);
    let presence = number(sampling_presence, row);
    let frequency = number(sampling_frequency, row);
    let last = inputs[sampling_edit_offsets + row + 1u];
    for (var e = inputs[sampling_edit_offsets + row] + thread; e < last; e += 256u) {
        let id = inputs[sampling_edit_ids + e];
        if (id / SHARE == share) {
            let times = bitcast<i32>(inputs[sampling_edit_counts + e]);
            var x = logit[id % SHARE] + number(sampling_edit_bias, e);
            if (times >= 0) {
                x = select(x * factor, x / factor, x > 0.0);
            }
            logit[id % SHARE] = x - presence * f32(times > 0) - frequency * f32(max(times, 0));
        }
    }
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let share = group.x;
    let row = group.y;
    var x = array<f32, EACH>();
    for (var i = 0u; i < EACH; i++) {
        x[i] = logits[row * vocab + min(token_at(share, i, thread), vocab - 1u)];
    }
    for (var i = 0u; i < EACH; i++) {
        logit[i * 256u + thread] = x[i];
    }
    workgroupBarrier();
    edit(row, share, thread);
    workgroupBarrier();
    let drawn = number(sampling_temperature, row) > 0.0;
    var mine = Ends(Place(NONE, vocab), 0u, NONE);
    for (var i = 0u; i < EACH; i++) {
        let id = token_at(share, i, thread);
        let value = logit[i * 256u + thread];
        let key = key_of(value);
        if (id < vocab) {
            if (key < mine.best.key) {
                mine.best = Place(key, id);
            }
            mine.far = max(mine.far, select(key, 0u, key == LOWEST));
            if (drawn) {
                scratch[row * ROW + id] = bitcast<u32>(value);
            }
        }
    }
    let ends = ends_of_all(mine, thread);
    if (thread == 0u) {
        let at = row * ROW + BESTS + 3u * share;
        scratch[at] = ends.best.key;
        scratch[at + 1u] = ends.best.id;
        scratch[at + 2u] = ends.far;
    }
}

// How logits become weights, and bins by their distance from the largest: most bins end where the least logit of some share
// lies, the others where that of the row does, so that single logits far below do not make all bins wide.
struct Scale {
    temperature: f32,
    least: f32,  // weight
    largest: f32,
    near: f32,  // the distance up to which bins are narrow
    narrow: f32,  // bins for a distance of 1
    wide: f32,
}

const NEAR = BINS / 4u * 3u;  // the first of the wide bins

fn scale_of(row: u32, ends: Ends) -> Scale {
    let temperature = number(sampling_temperature, row);
    let largest = number_of(ends.best.key);
    let near = min(largest - number_of(ends.near), REACH * temperature);
    let far = min(largest - number_of(ends.far), REACH * temperature);
    let narrow = f32(NEAR) / max(near, 1e-30);
    let wide = (f32(LAST - NEAR) - 0.5) / max(far - near, 1e-30);
    return Scale(temperature, number(sampling_min_p, row), largest, near, narrow, wide);
}

fn weight_of(x: f32, scale: Scale) -> f32 {
    let weight = exp(x / scale.temperature - scale.largest / scale.temperature);
    return select(0.0, weight, weight >= scale.least);
}

fn bin_of(x: f32, scale: Scale) -> u32 {
    if (key_of(x) == LOWEST || !(weight_of(x, scale) > 0.0)) {
        return LAST;
    }
    let distance = scale.largest - x;
    if (distance < scale.near) {
        return u32(min(distance * scale.narrow, f32(NEAR - 1u)));
    }
    let far = u32(min((distance - scale.near) * scale.wide, f32(LAST - NEAR)));
    return NEAR + min(far, LAST - NEAR);  // whatever inf - inf is
}

// The power of two that makes weights of a bin numbers below 2^24, of which their sums are exact.
fn shift_of(b: u32, scale: Scale) -> i32 {
    var distance = f32(b) / scale.narrow;
    if (b >= NEAR) {
        distance = scale.near + f32(b - NEAR) / scale.wide;
    }
    return 22 + i32(min(distance / scale.temperature * 1.44269504, 60.0));
}

// What is in each bin, or slot of one.
var<workgroup> counts: array<atomic<u32>, BINS>;
var<workgroup> low: array<atomic<u32>, BINS>;  // sums of the low 12 bits of weights, and of the others
var<workgroup> high: array<atomic<u32>, BINS>;

fn clear(slot: u32) {
    atomicStore(&counts[slot], 0u);
    atomicStore(&low[slot], 0u);
    atomicStore(&high[slot], 0u);
}

fn put(slot: u32, weight: f32, shift: i32) {
    let whole = u32(min(ldexp(weight, shift) + 0.5, 16777215.0));
    atomicAdd(&counts[slot], 1u);
    atomicAdd(&low[slot], whole & 4095u);
    atomicAdd(&high[slot], whole >> 12u);
}

// The sum of the weights, and the count.
fn sums_of(slot: u32, shift: i32) -> vec2<f32> {
    let whole = f32(atomicLoad(&high[slot])) * 4096.0 + f32(atomicLoad(&low[slot]));
    return vec2<f32>(ldexp(whole, -shift), f32(atomicLoad(&counts[slot])));
}

@compute @workgroup_size(256)
fn then(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let share = group.x;
    let row = group.y;
    if (number(sampling_temperature, row) <= 0.0) {
        return;
    }
    var x = array<f32, EACH>();
    for (var i = 0u; i < EACH; i++) {
        x[i] = edited(row, min(token_at(share, i, thread), vocab - 1u));
    }
    for (var b = thread; b < BINS; b += 256u) {
        clear(b);
    }
    let ends = ends_of_row(row, thread);
    if (!is_finite(ends.best.key)) {
        return;
    }
    let scale = scale_of(row, ends);
    for (var i = 0u; i < EACH; i++) {
        let b = bin_of(x[i], scale);
        if (token_at(share, i, thread) < vocab && b < LAST) {
            put(b, weight_of(x[i], scale), shift_of(b, scale));
        }
    }
    workgroupBarrier();
    var mine = array<vec2<f32>, OWN>();
    var all = vec2<f32>();
    for (var i = 0u; i < OWN; i++) {
        let b = thread * OWN + i;
        mine[i] = sums_of(b, shift_of(b, scale));
        all += mine[i];
    }
    var begin = u32(sum_before(all, thread).y);
    let table = row * ROW + TABLES + share * 2u * BINS + thread;
    for (var i = 0u; i < OWN; i++) {
        let count = u32(mine[i].y);
        scratch[table + i * 256u] = begin | (count << 16u);
        scratch[table + i * 256u + BINS] = bitcast<u32>(mine[i].x);
        atomicStore(&counts[thread * OWN + i], begin);
        begin += count;
    }
    workgroupBarrier();
    for (var i = 0u; i < EACH; i++) {
        let id = token_at(share, i, thread);
        let b = bin_of(x[i], scale);
        if (id < vocab && b < LAST) {
            scratch[row * ROW + ORDER + share * SHARE + atomicAdd(&counts[b], 1u)] = id;
        }
    }
}

// How far the order is gone: tokens up to one, its bin, and the sum of their weights.
struct Limit {
    last: Place,
    bin: u32,
    sum: f32,
}

// What is sought: the first token at which the sum, or the count, reaches a number, or is beyond it.
struct Goal {
    wanted: f32,
    beyond: bool,
    by_count: bool,
}

fn is_enough(sums: vec2<f32>, goal: Goal) -> bool {
    let sum = select(sums.x, sums.y, goal.by_count);
    return sum > goal.wanted || (!goal.beyond && sum == goal.wanted);
}

var<private> own: array<vec2<f32>, OWN>;  // the sums and counts of this thread's bins
var<private> before_own: vec2<f32>;

const AHEAD = 8u;  // shares whose tables are read at once

// Add the bins of all shares up, and return what there is without limits.
fn add_bins(row: u32, thread: u32) -> Limit {
    for (var share = 0u; share < SHARES; share += AHEAD) {
        var words = array<vec2<u32>, AHEAD * OWN>();
        for (var k = 0u; k < AHEAD * OWN; k++) {
            let table = row * ROW + TABLES + min(share + k / OWN, SHARES - 1u) * 2u * BINS;
            let at = table + k % OWN * 256u + thread;
            words[k] = vec2<u32>(scratch[at + BINS], scratch[at]);
        }
        for (var k = 0u; k < AHEAD * OWN; k++) {
            if (share + k / OWN < SHARES) {
                own[k % OWN] += vec2<f32>(bitcast<f32>(words[k].x), f32(words[k].y >> 16u));
            }
        }
    }
    var sum = vec2<f32>();
    for (var i = 0u; i < OWN; i++) {
        sum += own[i];
    }
    before_own = sum_before(sum, thread);
    var mine = vec4<u32>(NONE);
    sum = before_own;
    for (var i = 0u; i < OWN; i++) {
        sum += own[i];
        if (own[i].y > 0.0) {
            mine = ~vec4<u32>(thread * OWN + i, bitcast<u32>(sum.x), 0u, 0u);
        }
    }
    let last = ~least_of_all(mine, thread);
    return Limit(Place(NONE, NONE), last.x, bitcast<f32>(last.y));
}

// A bin or slot with the sum and count before it, and the count up to its end. All of them grow along the order: the least
// of each over several is that of the first.
fn found_at(slot: u32, before: vec2<f32>, after: vec2<f32>) -> vec4<u32> {
    return vec4<u32>(slot, bitcast<u32>(before.x), u32(before.y), u32(after.y));
}

fn first_bin(limit: Limit, goal: Goal, thread: u32) -> vec4<u32> {
    var mine = vec4<u32>(NONE);
    var sums = before_own;
    for (var i = 0u; i < OWN; i++) {
        let b = thread * OWN + i;
        let after = sums + own[i];
        if (mine.x == NONE && own[i].y > 0.0 && (b == limit.bin || (b < limit.bin && is_enough(after, goal)))) {
            mine = found_at(b, sums, after);
        }
        sums = after;
    }
    return least_of_all(mine, thread);
}

var<workgroup> held: array<Place, MOST>;  // tokens of a bin, in any order
var<workgroup> filled: atomic<u32>;

fn gather(row: u32, bin: u32, thread: u32) {
    const LANES = max(1u, 256u / SHARES);  // threads of a share
    if (thread == 0u) {
        atomicStore(&filled, 0u);
    }
    workgroupBarrier();
    for (var share = thread / LANES; share < SHARES; share += 256u / LANES) {
        let word = scratch[row * ROW + TABLES + share * 2u * BINS + bin % OWN * 256u + bin / OWN];
        let begin = word & 0xffffu;
        for (var at = begin + thread % LANES; at < begin + (word >> 16u); at += LANES) {
            let id = scratch[row * ROW + ORDER + share * SHARE + at];
            held[atomicAdd(&filled, 1u)] = Place(key_of(edited(row, id)), id);
        }
    }
    workgroupBarrier();
}

// Tokens among which those of a bin are: they alone, or all.
fn candidate(row: u32, i: u32, count: u32) -> Place {
    if (count <= MOST) {
        return held[i];
    }
    return Place(key_of(edited(row, i)), i);
}

// Whether a token is within keys and ids, from .xy to ~.zw, and not after the last one that is kept.
fn is_left(token: Place, range: vec4<u32>, last: Place) -> bool {
    let is_within = token.key >= range.x && token.id >= range.y && token.key <= ~range.z && token.id <= ~range.w;
    return is_within && (token.key < last.key || (token.key == last.key && token.id <= last.id));
}

// The first token up to a limit at which a goal is reached.
fn find(row: u32, scale: Scale, limit: Limit, goal: Goal, thread: u32) -> Limit {
    var found = first_bin(limit, goal, thread);
    let bin = found.x;
    let shift = shift_of(bin, scale);
    let count = select(found.w - found.z, vocab, found.w - found.z > MOST);
    if (count <= MOST) {
        gather(row, bin, thread);
    }
    var range = vec4<u32>();
    for (var level = 0u; level < 8u; level++) {  // four of keys, three of ids, and what these leave
        var mine = vec4<u32>(NONE);
        for (var i = thread; i < count; i += 256u) {
            let token = candidate(row, i, count);
            if (is_left(token, range, limit.last) && bin_of(number_of(token.key), scale) == bin) {
                mine = min(mine, vec4<u32>(token.key, token.id, ~token.key, ~token.id));
            }
        }
        clear(thread);
        range = least_of_all(mine, thread);
        let by_key = range.x < ~range.z;
        let begin = select(range.y, range.x, by_key);
        let width = select(~range.w, ~range.z, by_key) - begin;
        if (width == 0u) {
            break;
        }
        let bits = max(firstLeadingBit(width), 7u) - 7u;  // that do not matter in 256 slots
        for (var i = thread; i < count; i += 256u) {
            let token = candidate(row, i, count);
            if (is_left(token, range, limit.last)) {
                let slot = (select(token.id, token.key, by_key) - begin) >> bits;
                put(slot, weight_of(number_of(token.key), scale), shift);
            }
        }
        workgroupBarrier();
        let sums = sums_of(thread, shift);
        let before = vec2<f32>(bitcast<f32>(found.y), f32(found.z)) + sum_before(sums, thread);
        mine = vec4<u32>(NONE);
        if (thread == width >> bits || (sums.y > 0.0 && is_enough(before + sums, goal))) {
            mine = found_at(thread, before, before + sums);
        }
        found = least_of_all(mine, thread);
        let first = begin + (found.x << bits);
        let last = first + min(width - (found.x << bits), (1u << bits) - 1u);
        range = select(vec4<u32>(range.x, first, range.z, ~last), vec4<u32>(first, range.y, ~last, range.w), by_key);
    }
    return Limit(Place(range.x, range.y), bin, bitcast<f32>(found.y) + weight_of(number_of(range.x), scale));
}

fn draw(row: u32, ends: Ends, thread: u32) -> u32 {
    let scale = scale_of(row, ends);
    var limit = add_bins(row, thread);
    if (limit.sum == 0.0) {
        return ends.best.id;  // logits too large for their temperature
    }
    let top_k = inputs[sampling_top_k + row];
    if (top_k > 0u && top_k < vocab) {
        limit = find(row, scale, limit, Goal(f32(top_k), false, true), thread);
    }
    let top_p = number(sampling_top_p, row);
    if (top_p < 1.0) {
        limit = find(row, scale, limit, Goal(top_p * limit.sum, false, false), thread);
    }
    return find(row, scale, limit, Goal(uniform_of(row) * limit.sum, true, false), thread).last.id;
}

@compute @workgroup_size(256)
fn then2(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let row = group.x;
    let ends = ends_of_row(row, thread);
    var chosen = ends.best.id;
    if (number(sampling_temperature, row) > 0.0 && is_finite(ends.best.key)) {
        chosen = draw(row, ends, thread);
    }
    if (thread == 0u) {
        out[row] = min(chosen, vocab - 1u);
    }
}
