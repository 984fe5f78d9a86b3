/* The loop of simulator/replay/rounds.py in C, for five policies and two recorders: what the compiled replay
 * is measured against. tests/benchmarks/test_kernel_speed.py asserts equal bits first.
 *
 * Every policy is a struct with four hooks, forced into the loop by the macros at the end.
 */
#include <math.h>
#include <stdint.h>

#define HOOK static inline __attribute__((always_inline))

typedef struct {
    const int64_t *offsets;
    const int32_t *prompt_tokens;
    const int16_t *accept_len;
    const float *top1_prob; /* [N, depth] */
    int64_t requests, depth;
} Tape;

typedef struct {
    const double *draft_s, *verify_s; /* [buckets, width] */
    double signal_s;
    int64_t bucket_tokens, buckets, width;
} Prices;

typedef struct {
    int64_t max_gamma, max_new_tokens, max_context;
} Limits;

typedef struct {
    double *decode_s;
    int64_t *rounds, *drafted, *accepted; /* [requests] */
} Sums;

typedef struct {
    int64_t *draft, *verify; /* [buckets, width] */
} Steps;

typedef struct {
    int64_t gamma, drafted, accepted, emitted;
    double elapsed_s;
} Outcome;

HOOK int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
HOOK int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
HOOK double clip(double value, double low, double high) {
    value = value < low ? low : value;
    return value > high ? high : value;
}

/* always `gamma_tokens` */
typedef struct {
    int64_t gamma_tokens;
} Fixed;

HOOK void Fixed_admit(Fixed *p) {}
HOOK int64_t Fixed_gamma(Fixed *p, int64_t room) { return p->gamma_tokens; }
HOOK int Fixed_proceed(Fixed *p, int64_t drafted, double top1_prob) { return 1; }
HOOK void Fixed_learn(Fixed *p, Outcome o) {}

/* transformers' schedule, afresh for every request */
typedef struct {
    int64_t gamma0, gamma;
} HFHeuristic;

HOOK void HFHeuristic_admit(HFHeuristic *p) { p->gamma = p->gamma0; }
HOOK int64_t HFHeuristic_gamma(HFHeuristic *p, int64_t room) { return p->gamma; }
HOOK int HFHeuristic_proceed(HFHeuristic *p, int64_t drafted, double top1_prob) { return 1; }
HOOK void HFHeuristic_learn(HFHeuristic *p, Outcome o) {
    p->gamma = o.accepted == o.drafted ? p->gamma + 2 : most(1, p->gamma - 1);
}

typedef struct {
    int64_t gamma0, delta, gamma_min, gamma_max, gamma;
    double eta, ema;
} GammaTune;

HOOK void GammaTune_admit(GammaTune *p) {
    p->gamma = p->gamma0;
    p->ema = (double)p->gamma0;
}
HOOK int64_t GammaTune_gamma(GammaTune *p, int64_t room) { return p->gamma; }
HOOK int GammaTune_proceed(GammaTune *p, int64_t drafted, double top1_prob) { return 1; }
HOOK void GammaTune_learn(GammaTune *p, Outcome o) {
    if (o.accepted == p->gamma) {
        p->gamma = least(most(o.accepted + p->delta, p->gamma_min), p->gamma_max);
    } else {
        p->ema = clip((1.0 - p->eta) * p->ema + p->eta * o.accepted, p->gamma_min, p->gamma_max);
        p->gamma = (int64_t)ceil(p->ema);
    }
}

/* UCB1 on tokens per second, arms gamma_min..gamma_max */
typedef struct {
    int64_t gamma_min, gamma_max;
    double exploration;
    double *plays, *tokens, *seconds; /* [arms] */
} UCB;

HOOK void UCB_admit(UCB *p) {}
HOOK int64_t UCB_gamma(UCB *p, int64_t room) {
    int64_t arms = most(0, least(p->gamma_max, room) - p->gamma_min + 1);
    if (arms == 0) return 0;
    double total = 0.0, best_rate = 0.0;
    for (int64_t k = 0; k < arms; k++) {
        if (p->plays[k] < 1e-12) return p->gamma_min + k;
        total += p->plays[k];
        double rate = p->tokens[k] / p->seconds[k];
        if (rate > best_rate) best_rate = rate;
    }
    double log_total = log(total > 1.0 ? total : 1.0), best_index = -1.0;
    int64_t best = 0;
    for (int64_t k = 0; k < arms; k++) {
        double rate = p->tokens[k] / p->seconds[k] / best_rate;
        double index = rate + p->exploration * sqrt(log_total / p->plays[k]);
        if (index > best_index) {
            best = k;
            best_index = index;
        }
    }
    return p->gamma_min + best;
}
HOOK int UCB_proceed(UCB *p, int64_t drafted, double top1_prob) { return 1; }
HOOK void UCB_learn(UCB *p, Outcome o) {
    int64_t k = o.gamma - p->gamma_min;
    if (k < 0 || k > p->gamma_max - p->gamma_min) return;
    p->plays[k] += 1.0;
    p->tokens[k] += o.emitted;
    p->seconds[k] += o.elapsed_s;
}

/* stop when the product of top-1 probabilities falls below theta */
typedef struct {
    double theta, product;
    int64_t gamma_max;
} TailPruning;

HOOK void TailPruning_admit(TailPruning *p) { p->product = 1.0; }
HOOK int64_t TailPruning_gamma(TailPruning *p, int64_t room) { return p->gamma_max; }
HOOK int TailPruning_proceed(TailPruning *p, int64_t drafted, double top1_prob) {
    p->product = (drafted == 1 ? 1.0 : p->product) * top1_prob;
    return p->product >= p->theta;
}
HOOK void TailPruning_learn(TailPruning *p, Outcome o) {}

HOOK int64_t room_at(const Limits *limits, int64_t prompt, int64_t position) {
    int64_t room = least(limits->max_gamma, limits->max_new_tokens - position - 1);
    if (limits->max_context > 0) {
        room = least(room, limits->max_context - (prompt + position) - 1);
    }
    return most(0, room);
}

HOOK double round_seconds(const Prices *prices, int64_t bucket, int64_t drafted, int64_t lag) {
    double seconds = 0.0;
    if (drafted > 0) {
        const double *draft_s = prices->draft_s + bucket * prices->width;
        seconds += draft_s[least(lag, prices->width - 1)];
        seconds += (drafted - 1) * draft_s[1];
        seconds += drafted * prices->signal_s;
    }
    return seconds + prices->verify_s[bucket * prices->width + drafted + 1];
}

HOOK void count_steps(const Steps *steps, int64_t width, int64_t bucket, int64_t drafted, int64_t lag) {
    steps->verify[bucket * width + drafted + 1]++;
    if (drafted > 0) {
        steps->draft[bucket * width + least(lag, width - 1)]++;
        steps->draft[bucket * width + 1] += drafted - 1;
    }
}

/* The row of the price tables for a context, and the first context behind it. */
HOOK int64_t bucket_of(const Prices *prices, int64_t context) {
    return least(context / prices->bucket_tokens, prices->buckets - 1);
}
HOOK int64_t bucket_end(const Prices *prices, int64_t bucket) {
    return bucket < prices->buckets - 1 ? (bucket + 1) * prices->bucket_tokens : INT64_MAX;
}

/* Sums of a request stay in registers until it ends. SUMS, STEPS: which of the two is recorded. */
#define PLAY(NAME, POLICY, SIGNALS, SUMS, STEPS)                                                 \
    int64_t NAME(POLICY *policy, const Tape *tape, const Prices *prices, const Limits *limits,   \
                 const Sums *sums, const Steps *steps) {                                         \
        POLICY p = *policy;                                                                      \
        int64_t all_rounds = 0;                                                                  \
        for (int64_t r = 0; r < tape->requests; r++) {                                           \
            POLICY##_admit(&p);                                                                  \
            int64_t prompt = tape->prompt_tokens[r], begin = tape->offsets[r];                   \
            int64_t end = tape->offsets[r + 1], at = begin, lag = 1, edge = 0, bucket = 0;       \
            int64_t rounds = 0, all_drafted = 0, all_accepted = 0;                               \
            double decode_s = 0.0;                                                               \
            while (at < end) {                                                                   \
                int64_t context = prompt + at - begin;                                           \
                if (context >= edge) {                                                           \
                    bucket = bucket_of(prices, context);                                         \
                    edge = bucket_end(prices, bucket);                                           \
                }                                                                                \
                int64_t room = room_at(limits, prompt, at - begin);                              \
                int64_t cap = most(0, least(POLICY##_gamma(&p, room), room)), drafted = cap;     \
                if (SIGNALS) {                                                                   \
                    int going = 1;                                                               \
                    drafted = 0;                                                                 \
                    while (going && drafted < cap) {                                             \
                        double top1_prob = tape->top1_prob[at * tape->depth + drafted];          \
                        drafted++;                                                               \
                        going = POLICY##_proceed(&p, drafted, top1_prob);                        \
                    }                                                                            \
                }                                                                                \
                int64_t accepted = least(drafted, tape->accept_len[at]);                         \
                int64_t emitted = least(accepted + 1, end - at);                                 \
                double elapsed_s = round_seconds(prices, bucket, drafted, lag);                  \
                POLICY##_learn(&p, (Outcome){cap, drafted, accepted, emitted, elapsed_s});       \
                if (STEPS) count_steps(steps, prices->width, bucket, drafted, lag);              \
                decode_s += elapsed_s;                                                           \
                all_drafted += drafted;                                                          \
                all_accepted += accepted;                                                        \
                lag = drafted == 0 ? lag + 1 : accepted == drafted ? 2 : 1;                      \
                at += emitted;                                                                   \
                rounds++;                                                                        \
            }                                                                                    \
            if (SUMS) {                                                                          \
                sums->decode_s[r] = decode_s;                                                    \
                sums->rounds[r] = rounds;                                                        \
                sums->drafted[r] = all_drafted;                                                  \
                sums->accepted[r] = all_accepted;                                                \
            }                                                                                    \
            all_rounds += rounds;                                                                \
        }                                                                                        \
        return all_rounds;                                                                       \
    }

#define BOTH(POLICY, SIGNALS)                     \
    PLAY(POLICY##_sums, POLICY, SIGNALS, 1, 0)    \
    PLAY(POLICY##_steps, POLICY, SIGNALS, 0, 1)

BOTH(Fixed, 0)
BOTH(HFHeuristic, 0)
BOTH(GammaTune, 0)
BOTH(UCB, 0)
BOTH(TailPruning, 1)
