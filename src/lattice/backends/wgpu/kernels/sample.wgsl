// One token a row: edits, temperature, top-k, min-p, top-p and the draw. In the order of falling logits (equal ones by id) each
// limit, and the draw itself, is the first token at which a sum of weights, or a count, reaches a number.
// `main`: a workgroup for 4,096 tokens of a row edits their logits and finds the largest and the least.
// `then`: the same tokens into bins by how far they lie below the row's largest: ids in the order of their bins, and for
//     each bin the tokens before it and its sum. Sums are of integers, so that the order in which threads come is nothing.
// `then2`: a workgroup a row adds the bins up and sorts the tokens of those (one for each limit) in which a number is reached.
// Bins end where a weight is e^-32 of the largest: all that lies beyond is less than what an f32 of the sum can tell. They
// are as fine as the row's logits allow, so that flat rows have small bins, too. Where one holds more tokens than can be
// sorted (many equal logits), nothing is sorted: sums over all tokens before a given one find the place, sixteen at a time,
// first of the logit's bits, then among equals of the id.

// workgroups: ceil(logits_columns / 4096), logits_count
// workgroups then: ceil(logits_columns / 4096), logits_count
// workgroups then2: logits_count
// scratch: logits_count * logits_stride * 3

@group(0) @binding(0) var<storage, read> inputs: array<u32>;
@group(0) @binding(1) var<storage, read> logits: array<f32>;
@group(0) @binding(2) var<storage, read_write> scratch: array<u32>;
@group(0) @binding(3) var<storage, read_write> out: array<u32>;

const vocab = logits_columns;
const SHARE = 4096u;  // tokens of a workgroup
const EACH = SHARE / 256u;
const SHARES = (vocab + SHARE - 1u) / SHARE;
const BINS = 128u + 896u * u32(vocab >= 2048u);
const LAST = BINS - 1u;  // the bin of what has no weight
const OWN = (BINS + 255u) / 256u;  // bins of a thread
const REACH = 32.0;  // exp(-REACH): what weighs nothing
const MOST = 2048u;  // tokens that are sorted
// A row of scratch memory: logits, ids in the order of their bins, for each share its bins' begins and sums, and then its
// largest token, as key and id, and its least logit.
const ROW = logits_stride * 3u;
const ORDER = vocab;
const TABLES = 2u * vocab;
const BESTS = TABLES + SHARES * 2u * BINS;

// A place in the order: bits that grow with the logit, and an id.
struct Place {
    key: u32,
    id: u32,
}

var<workgroup> parts: array<f32, 256>;
var<workgroup> places: array<Place, 256>;

fn number(field: u32, row: u32) -> f32 {
    return bitcast<f32>(inputs[field + row]);
}

const LOWEST = 0x007fffffu;  // minus infinity's bits

// Bits that grow with the number; what is no number counts as the lowest, minus infinity.
fn key_of(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return LOWEST;
    }
    if (bits == 0x80000000u) {
        return bits;  // -0 equals 0
    }
    return select(bits | 0x80000000u, ~bits, bits >= 0x80000000u);
}

fn number_of(key: u32) -> f32 {
    return bitcast<f32>(select(~key, key & 0x7fffffffu, key >= 0x80000000u));
}

fn total(value: f32, thread: u32) -> f32 {
    workgroupBarrier();
    parts[thread] = value;
    for (var half = 128u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (thread < half) {
            parts[thread] += parts[thread + half];
        }
    }
    workgroupBarrier();
    return parts[0];
}

fn before(a: Place, b: Place) -> bool {
    return a.key > b.key || (a.key == b.key && a.id <= b.id);
}

fn first_of_all(mine: Place, thread: u32) -> Place {
    workgroupBarrier();
    places[thread] = mine;
    for (var half = 128u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (thread < half && before(places[thread + half], places[thread])) {
            places[thread] = places[thread + half];
        }
    }
    workgroupBarrier();
    return places[0];
}

// The least of one number and the largest of another.
fn least_and_largest(mine: vec2<u32>, thread: u32) -> vec2<u32> {
    workgroupBarrier();
    places[thread] = Place(mine.x, mine.y);
    for (var half = 128u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (thread < half) {
            let one = places[thread];
            let other = places[thread + half];
            places[thread] = Place(min(one.key, other.key), max(one.id, other.id));
        }
    }
    workgroupBarrier();
    return vec2<u32>(places[0].key, places[0].id);
}

// What is left of the tokens, and how they are weighed.
struct Kept {
    last: Place,
    largest: f32,
    temperature: f32,
    least: f32,  // weight
}

// A logit with its edits.
fn edited(row: u32, id: u32) -> f32 {
    return bitcast<f32>(scratch[row * ROW + id]);
}

fn weight_of(x: f32, kept: Kept) -> f32 {
    let weight = exp(x / kept.temperature - kept.largest);
    return select(0.0, weight, weight >= kept.least);
}

// The sum of the weights of what is kept.
fn sum_of(row: u32, kept: Kept, thread: u32) -> f32 {
    var sum = 0.0;
    for (var id = thread; id < vocab; id += 256u) {
        let x = edited(row, id);
        if (before(Place(key_of(x), id), kept.last)) {
            sum += weight_of(x, kept);
        }
    }
    return total(sum, thread);
}

var<workgroup> sums: array<vec4<f32>, 256>;

fn total_four(value: vec4<f32>, thread: u32) -> vec4<f32> {
    workgroupBarrier();
    sums[thread] = value;
    for (var half = 128u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (thread < half) {
            sums[thread] += sums[thread + half];
        }
    }
    workgroupBarrier();
    return sums[0];
}

const FOUR = vec4<u32>(0u, 1u, 2u, 3u);

// How many of sixteen sums, of which each next one is not larger (by key) or not smaller (by id), are enough.
fn enough(sum: array<vec4<f32>, 4>, wanted: f32, beyond: bool, thread: u32) -> u32 {
    var count = 0u;
    for (var i = 0u; i < 4u; i++) {
        let all = total_four(sum[i], thread);
        let is = select(all >= vec4<f32>(wanted), all > vec4<f32>(wanted), beyond);
        count += u32(is.x) + u32(is.y) + u32(is.z) + u32(is.w);
    }
    return count;
}

// The first token at which the sum reaches `wanted`, or is beyond it: of weights, or of ones.
fn reach(row: u32, kept: Kept, wanted: f32, beyond: bool, by_count: bool, thread: u32) -> Place {
    var key = 0u;
    for (var shift = 28u; shift < 32u; shift -= 4u) {  // the largest key with enough at and above it
        let step = 1u << shift;
        var sum = array<vec4<f32>, 4>();
        for (var id = thread; id < vocab; id += 256u) {
            let x = edited(row, id);
            let own = Place(key_of(x), id);
            if (own.key >= key && before(own, kept.last)) {
                let weight = vec4<f32>(select(weight_of(x, kept), 1.0, by_count));
                let reached = vec4<u32>(min((own.key - key) / step, 15u));
                sum[0] += select(vec4<f32>(), weight, reached >= FOUR);
                sum[1] += select(vec4<f32>(), weight, reached >= FOUR + 4u);
                sum[2] += select(vec4<f32>(), weight, reached >= FOUR + 8u);
                sum[3] += select(vec4<f32>(), weight, reached >= FOUR + 12u);
            }
        }
        key += (max(enough(sum, wanted, beyond, thread), 1u) - 1u) * step;
    }
    var first = 0u;
    for (var shift = 20u; shift < 32u; shift -= 4u) {  // the smallest id with enough up to it
        let step = 1u << shift;
        var sum = array<vec4<f32>, 4>();
        for (var id = thread; id < vocab; id += 256u) {
            let x = edited(row, id);
            let own = Place(key_of(x), id);
            if (own.key >= key && before(own, kept.last)) {
                let weight = vec4<f32>(select(weight_of(x, kept), 1.0, by_count));
                let reached = vec4<u32>(select((max(id, first) - first) / step, 0u, own.key > key));
                sum[0] += select(vec4<f32>(), weight, reached <= FOUR);
                sum[1] += select(vec4<f32>(), weight, reached <= FOUR + 4u);
                sum[2] += select(vec4<f32>(), weight, reached <= FOUR + 8u);
                sum[3] += select(vec4<f32>(), weight, reached <= FOUR + 12u);
            }
        }
        first += (16u - max(enough(sum, wanted, beyond, thread), 1u)) * step;
    }
    return Place(key, first);
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
    var mine = Place(0u, vocab);
    var least = 0xffffffffu;
    for (var i = 0u; i < EACH; i++) {
        let id = token_at(share, i, thread);
        let value = logit[i * 256u + thread];
        let key = key_of(value);
        if (id < vocab) {
            if (!before(mine, Place(key, id))) {
                mine = Place(key, id);
            }
            least = min(least, select(key, 0xffffffffu, key == LOWEST));
            if (drawn) {
                scratch[row * ROW + id] = bitcast<u32>(value);
            }
        }
    }
    let best = first_of_all(mine, thread);
    if (drawn) {
        least = least_and_largest(vec2<u32>(least, 0u), thread).x;
    }
    if (thread == 0u) {
        let at = row * ROW + BESTS + 3u * share;
        scratch[at] = best.key;
        scratch[at + 1u] = best.id;
        scratch[at + 2u] = least;
    }
}

// A row's largest token.
fn best_of(row: u32, thread: u32) -> Place {
    var mine = Place(0u, vocab);
    for (var share = thread; share < SHARES; share += 256u) {
        let at = row * ROW + BESTS + 3u * share;
        let other = Place(scratch[at], scratch[at + 1u]);
        if (!before(mine, other)) {
            mine = other;
        }
    }
    return first_of_all(mine, thread);
}

// The key of a row's least logit, and that of the share whose least is largest.
fn leasts_of(row: u32, thread: u32) -> vec2<u32> {
    var mine = vec2<u32>(0xffffffffu, 0u);
    for (var share = thread; share < SHARES; share += 256u) {
        let key = scratch[row * ROW + BESTS + 3u * share + 2u];
        mine = vec2<u32>(min(mine.x, key), max(mine.y, select(key, 0u, key == 0xffffffffu)));
    }
    return least_and_largest(mine, thread);
}

fn is_finite(key: u32) -> bool {
    return key > LOWEST && key < 0xff800000u;
}

// What everything of a row weighs, before there are limits.
fn weighed(row: u32, best: Place) -> Kept {
    let temperature = number(sampling_temperature, row);
    return Kept(Place(0u, vocab), number_of(best.key) / temperature, temperature, number(sampling_min_p, row));
}

// How logits become bins by their distance from the largest: most bins end where the least logit of some share lies, the
// others where that of the row does, so that single logits far below do not make all bins wide. Beyond REACH are none.
struct Bins {
    largest: f32,
    near: f32,  // the distance up to which bins are narrow
    narrow: f32,  // bins for a distance of 1
    wide: f32,
}

const NEAR = BINS / 4u * 3u;  // the first of the wide bins

fn bins_of(best: Place, leasts: vec2<u32>, temperature: f32) -> Bins {
    let largest = number_of(best.key);
    let near = min(largest - number_of(leasts.y), REACH * temperature);
    let far = min(largest - number_of(leasts.x), REACH * temperature);
    return Bins(largest, near, f32(NEAR) / max(near, 1e-30), (f32(LAST - NEAR) - 0.5) / max(far - near, 1e-30));
}

fn bin_of(x: f32, bins: Bins) -> u32 {
    if (key_of(x) == LOWEST) {
        return LAST;
    }
    let distance = bins.largest - x;
    if (distance < bins.near) {
        return u32(min(distance * bins.narrow, f32(NEAR - 1u)));
    }
    return NEAR + min(u32(min((distance - bins.near) * bins.wide, f32(LAST - NEAR))), LAST - NEAR);  // whatever inf - inf is
}

// The power of two that makes weights of a bin numbers below 2^24, of which their sums are exact.
fn shift_of(b: u32, bins: Bins, temperature: f32) -> i32 {
    var distance = f32(b) / bins.narrow;
    if (b >= NEAR) {
        distance = bins.near + f32(b - NEAR) / bins.wide;
    }
    return 22 + i32(min(distance / temperature * 1.44269504, 60.0));
}

fn power(exponent: i32) -> f32 {
    return bitcast<f32>(u32(exponent + 127) << 23u);
}

var<workgroup> counts: array<atomic<u32>, BINS>;
var<workgroup> low: array<atomic<u32>, BINS>;  // sums of the low 12 bits of weights, and of the others
var<workgroup> high: array<atomic<u32>, BINS>;
var<workgroup> ones: array<u32, 256>;

// The sum of what threads before this one have.
fn sum_before(value: u32, thread: u32) -> u32 {
    ones[thread] = value;
    for (var step = 1u; step < 256u; step *= 2u) {
        workgroupBarrier();
        var other = 0u;
        if (thread >= step) {
            other = ones[thread - step];
        }
        workgroupBarrier();
        ones[thread] += other;
    }
    return ones[thread] - value;
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
        atomicStore(&counts[b], 0u);
        atomicStore(&low[b], 0u);
        atomicStore(&high[b], 0u);
    }
    let best = best_of(row, thread);
    let leasts = leasts_of(row, thread);
    if (!is_finite(best.key)) {
        return;
    }
    let kept = weighed(row, best);
    let bins = bins_of(best, leasts, kept.temperature);
    for (var i = 0u; i < EACH; i++) {
        if (token_at(share, i, thread) < vocab) {
            let b = bin_of(x[i], bins);
            atomicAdd(&counts[b], 1u);
            let weight = weight_of(x[i], kept);
            if (b < LAST && weight > 0.0) {
                let whole = u32(min(weight * power(shift_of(b, bins, kept.temperature)) + 0.5, 16777215.0));
                atomicAdd(&low[b], whole & 4095u);
                atomicAdd(&high[b], whole >> 12u);
            }
        }
    }
    workgroupBarrier();
    var held = array<u32, OWN>();
    var all = 0u;
    for (var i = 0u; i < OWN; i++) {
        let b = thread * OWN + i;
        if (b < BINS) {
            held[i] = atomicLoad(&counts[b]);
            all += held[i];
        }
    }
    var begin = sum_before(all, thread);
    let table = row * ROW + TABLES + share * 2u * BINS;
    for (var i = 0u; i < OWN; i++) {
        let b = thread * OWN + i;
        if (b < BINS) {
            let whole = f32(atomicLoad(&high[b])) * 4096.0 + f32(atomicLoad(&low[b]));
            scratch[table + b] = begin;
            scratch[table + BINS + b] = bitcast<u32>(whole * power(-shift_of(b, bins, kept.temperature)));
            atomicStore(&counts[b], begin);
            begin += held[i];
        }
    }
    workgroupBarrier();
    for (var i = 0u; i < EACH; i++) {
        let id = token_at(share, i, thread);
        let b = bin_of(x[i], bins);
        if (id < vocab && b < LAST) {
            scratch[row * ROW + ORDER + share * SHARE + atomicAdd(&counts[b], 1u)] = id;
        }
    }
}

// How far the order is gone: tokens up to one, by its bin and its place there, and the sum of their weights.
struct Limit {
    bin: u32,
    place: u32,
    sum: f32,
}

var<workgroup> weight_to: array<f32, BINS>;  // of the tokens in bins up to each
var<workgroup> count_before: array<u32, BINS>;  // of the tokens in bins before each
var<workgroup> keys: array<u32, MOST>;  // tokens of a bin, in order
var<workgroup> ids: array<u32, MOST>;
var<workgroup> first: atomic<u32>;
var<workgroup> weighty: atomic<u32>;
var<workgroup> reached: f32;

// The sum of what threads before this one have.
fn weight_before(value: f32, thread: u32) -> f32 {
    workgroupBarrier();
    parts[thread] = value;
    for (var step = 1u; step < 256u; step *= 2u) {
        workgroupBarrier();
        var other = 0.0;
        if (thread >= step) {
            other = parts[thread - step];
        }
        workgroupBarrier();
        parts[thread] += other;
    }
    workgroupBarrier();
    if (thread == 0u) {
        return 0.0;
    }
    return parts[thread - 1u];
}

const AHEAD = 8u;  // shares whose tables are read at once

fn add_bins(row: u32, thread: u32) {
    var weight = array<f32, OWN>();
    var count = array<u32, OWN>();
    for (var share = 0u; share < SHARES; share += AHEAD) {
        var words = array<vec2<u32>, AHEAD * OWN>();
        for (var k = 0u; k < AHEAD * OWN; k++) {
            let table = row * ROW + TABLES + min(share + k / OWN, SHARES - 1u) * 2u * BINS;
            let b = min(k % OWN * 256u + thread, LAST);
            words[k] = vec2<u32>(scratch[table + b], scratch[table + BINS + b]);
        }
        for (var k = 0u; k < AHEAD * OWN; k++) {
            if (share + k / OWN < SHARES) {
                count[k % OWN] += words[k].x;
                weight[k % OWN] += bitcast<f32>(words[k].y);
            }
        }
    }
    for (var i = 0u; i < OWN; i++) {
        let b = i * 256u + thread;
        if (b < BINS) {
            count_before[b] = count[i];
            weight_to[b] = weight[i];
        }
    }
    workgroupBarrier();
    var sum = 0.0;
    for (var i = 0u; i < OWN; i++) {
        let b = thread * OWN + i;
        if (b < BINS) {
            sum += weight_to[b];
        }
    }
    sum = weight_before(sum, thread);
    for (var i = 0u; i < OWN; i++) {
        let b = thread * OWN + i;
        if (b < BINS) {
            sum += weight_to[b];
            weight_to[b] = sum;
        }
    }
    workgroupBarrier();
}

fn is_enough(sum: f32, wanted: f32, beyond: bool) -> bool {
    return sum > wanted || (!beyond && sum == wanted);
}

// The tokens of a bin, sorted.
fn gather(row: u32, bin: u32, count: u32, thread: u32) {
    const LANES = max(1u, 256u / SHARES);  // threads of a share
    if (thread == 0u) {
        atomicStore(&first, 0u);
    }
    workgroupBarrier();
    for (var share = thread / LANES; share < SHARES; share += 256u / LANES) {
        let table = row * ROW + TABLES + share * 2u * BINS;
        let end = scratch[table + bin + 1u];
        for (var at = scratch[table + bin] + thread % LANES; at < end; at += LANES) {
            let id = scratch[row * ROW + ORDER + share * SHARE + at];
            let to = atomicAdd(&first, 1u);
            ids[to] = id;
            keys[to] = key_of(edited(row, id));
        }
    }
    var all = 2u;
    while (all < count) {
        all *= 2u;
    }
    for (var i = count + thread; i < all; i += 256u) {
        keys[i] = 0u;
        ids[i] = vocab;
    }
    for (var size = 2u; size <= all; size *= 2u) {
        for (var half = size / 2u; half > 0u; half /= 2u) {
            workgroupBarrier();
            for (var i = thread; i < all / 2u; i += 256u) {
                let a = 2u * i - (i & (half - 1u));
                let b = a + half;
                let one = Place(keys[a], ids[a]);
                let other = Place(keys[b], ids[b]);
                if (before(one, other) != ((a & size) == 0u)) {
                    keys[a] = other.key;
                    ids[a] = other.id;
                    keys[b] = one.key;
                    ids[b] = one.id;
                }
            }
        }
    }
    workgroupBarrier();
}

const NONE = 0xffffffffu;
var<private> gathered: u32 = NONE;  // the bin whose tokens are there

// The first token up to a limit at which the sum of weights, or the count, is enough; bin NONE where its bin is too large.
fn seek(row: u32, kept: Kept, limit: Limit, wanted: f32, beyond: bool, by_count: bool, thread: u32) -> Limit {
    workgroupBarrier();
    if (thread == 0u) {
        atomicStore(&first, limit.bin);
    }
    workgroupBarrier();
    for (var i = 0u; i < OWN; i++) {
        let b = thread * OWN + i;
        if (b < limit.bin) {
            let sum = select(weight_to[b], f32(count_before[b + 1u]), by_count);
            if (is_enough(sum, wanted, beyond)) {
                atomicMin(&first, b);
            }
        }
    }
    workgroupBarrier();
    let bin = atomicLoad(&first);
    let count = count_before[bin + 1u] - count_before[bin];
    if (count > MOST) {
        return Limit(NONE, 0u, 0.0);
    }
    workgroupBarrier();
    if (bin != gathered) {
        gather(row, bin, count, thread);
        gathered = bin;
    }
    let last = select(count, min(count, limit.place + 1u), bin == limit.bin);  // the end of what may be taken
    let own = (count + 255u) / 256u;
    let begin = min(thread * own, last);
    let end = min(begin + own, last);
    var sum = 0.0;
    for (var i = begin; i < end; i++) {
        sum += weight_of(number_of(keys[i]), kept);
    }
    var before_bin = 0.0;
    if (bin > 0u) {
        before_bin = weight_to[bin - 1u];
    }
    let before_own = before_bin + weight_before(sum, thread);
    if (thread == 0u) {
        atomicStore(&first, last - 1u);
        atomicStore(&weighty, 0u);
    }
    workgroupBarrier();
    sum = before_own;
    for (var i = begin; i < end; i++) {
        let weight = weight_of(number_of(keys[i]), kept);
        sum += weight;
        if (is_enough(select(sum, f32(count_before[bin] + i + 1u), by_count), wanted, beyond)) {
            atomicMin(&first, i);
        }
        if (weight > 0.0) {
            atomicMax(&weighty, i);
        }
    }
    workgroupBarrier();
    let place = select(min(atomicLoad(&first), atomicLoad(&weighty)), atomicLoad(&first), by_count);
    if (begin <= place && place < end) {
        sum = before_own;
        for (var i = begin; i <= place; i++) {
            sum += weight_of(number_of(keys[i]), kept);
        }
        reached = sum;
    }
    workgroupBarrier();
    return Limit(bin, place, reached);
}

// The token that is drawn; none where a bin is too large.
fn drawn_from_bins(row: u32, best: Place, thread: u32) -> u32 {
    let kept = weighed(row, best);
    add_bins(row, thread);
    var limit = Limit(LAST - 1u, vocab, weight_to[LAST - 1u]);
    let top_k = inputs[sampling_top_k + row];
    if (top_k > 0u && top_k <= count_before[LAST]) {
        limit = seek(row, kept, limit, f32(top_k), false, true, thread);
    }
    let top_p = number(sampling_top_p, row);
    if (top_p < 1.0 && limit.bin != NONE) {
        limit = seek(row, kept, limit, top_p * limit.sum, false, false, thread);
    }
    if (limit.bin != NONE) {
        limit = seek(row, kept, limit, uniform_of(row) * limit.sum, true, false, thread);
    }
    if (limit.bin == NONE) {
        return NONE;
    }
    return ids[limit.place];
}

// The same without bins.
fn drawn_by_passes(row: u32, best: Place, thread: u32) -> u32 {
    var kept = weighed(row, best);
    kept.least = 0.0;
    let top_k = inputs[sampling_top_k + row];
    if (top_k > 0u && top_k < vocab) {
        kept.last = reach(row, kept, f32(top_k), false, true, thread);
    }
    kept.least = number(sampling_min_p, row);
    var sum = sum_of(row, kept, thread);
    let top_p = number(sampling_top_p, row);
    if (top_p < 1.0) {
        kept.last = reach(row, kept, top_p * sum, false, false, thread);
        sum = sum_of(row, kept, thread);
    }
    return reach(row, kept, uniform_of(row) * sum, true, false, thread).id;
}

@compute @workgroup_size(256)
fn then2(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let row = group.x;
    let best = best_of(row, thread);
    var chosen = best.id;
    if (number(sampling_temperature, row) > 0.0 && is_finite(best.key)) {
        chosen = drawn_from_bins(row, best, thread);
        if (chosen == NONE) {
            chosen = drawn_by_passes(row, best, thread);
        }
    }
    if (thread == 0u) {
        out[row] = min(chosen, vocab - 1u);
    }
}
