/* The inside of a UNet: an ordered call list of layers, each with its forward beside its backward.
 * Backward runs the same list reversed. Only files of this folder include this.
 *
 * Letters: n images in use, h an activation, dh its gradient. */
#pragma once

#include "base/arena.h"
#include "daemon/model/parts.h"
#include "daemon/model/plan.h"
#include "daemon/model/unet.h"
#include "daemon/ops/attention.h"
#include "daemon/ops/conv.h"
#include "daemon/ops/embed.h"
#include "daemon/ops/norm.h"
#include "daemon/ops/sums.h"

/* An activation between layers. Backward visits its readers in reverse: the first writes the
 * gradient, the others add to it. */
struct feature {
	const struct layout *layout;
	struct tensor *value, *grad;
	bool grad_claimed; /* while planning */
};

/* Parameters of one operator: where they are in a section (in floats) and their working copies. */
struct conv_params {
	struct conv conv;
	uint64_t weight_at, bias_at;
	struct tensor *forward, *backward, *bias;
};

struct norm_params {
	struct group_norm norm;
	uint64_t weight_at, bias_at;
	struct tensor *weight, *bias, *state;
};

struct linear_params {
	struct linear linear;
	uint64_t weight_at, bias_at;
	struct tensor *weight, *bias;
};

/* Sinusoids, two linears, class embedding, and the projections of all resnets. */
struct time_layer {
	struct linear_params linear_1, linear_2;
	uint64_t class_at;
	struct tensor *class_table;                     /* [class_count][temb] */
	struct tensor *sinusoid, *hidden, *hidden_silu; /* [batch][ch0], [batch][temb] twice */
	struct tensor *embedding, *embedding_silu;      /* [batch][temb] */
	struct tensor *dembedding, *dhidden;            /* [batch][temb] */
};

struct input_layer {
	struct conv_params conv;
	struct tensor *patches, *rest; /* rest: what bf16 lost of patches, or NULL */
	struct feature *out;
};

struct resnet_layer {
	uint32_t in_count;
	struct feature *in[SPANS_MAX], *out;
	bool accumulate[SPANS_MAX]; /* into in[i]'s gradient */
	bool has_shortcut;
	struct norm_params norm1, norm2;
	struct conv_params conv1, conv2, shortcut;
	struct linear_params time_proj;
	uint32_t time_column;                /* in unet->time_proj */
	struct tensor *act1, *hidden, *act2; /* act1 = silu(norm1(x)), hidden = conv1(act1) + t */
	/* In backward; first the activations again, then their gradients. */
	struct tensor *back_hidden, *back1, *back2;
};

struct attention_layer {
	struct feature *in, *out;
	bool accumulate;
	struct norm_params norm;
	struct conv_params to_q, to_k, to_v, to_out;
	struct attention attention;
	struct heads {
		struct tensor *z, *q, *k, *v, *o; /* z = norm(x) */
	} heads, back;
	struct tensor *projected;
	struct tensor *dprojected, *dout, *dq, *dk, *dv, *dz;
	struct tensor *scratch, *back_scratch;
};

struct resample_layer {
	bool up;
	struct feature *in, *out;
	bool accumulate;
	struct conv_params conv;
	struct tensor *phases[4], *back_phases[4];
};

struct output_layer {
	struct feature *in;
	bool accumulate;
	struct norm_params norm;
	struct conv_params conv;
	struct tensor *act, *y, *back, *dy; /* back: act again, then its gradient */
};

struct layer;

struct layer_kind {
	const char *name;
	void (*plan)(struct unet *unet, struct layer *layer, uint32_t step);
	void (*plan_backward)(struct unet *unet, struct layer *layer, uint32_t step);
	/* After the plan is bound: pointers that operators keep. */
	void (*load)(struct unet *unet, struct layer *layer, const float *section);
	void (*forward)(struct unet *unet, struct layer *layer);
	void (*backward)(struct unet *unet, struct layer *layer);
};

extern const struct layer_kind layer_time, layer_input, layer_resnet, layer_attention,
	layer_resample, layer_output;

struct layer {
	const struct layer_kind *kind;
	union {
		struct time_layer time;
		struct input_layer input;
		struct resnet_layer resnet;
		struct attention_layer attention;
		struct resample_layer resample;
		struct output_layer output;
	};
};

struct unet {
	struct unet_config config;
	const struct tensor_table *table; /* only while building */
	const struct engine *engine;
	const struct form *form;
	uint32_t batch, time_width; /* time_width: temb */
	bool training, recompute;
	uint32_t thread_count;
	_Atomic uint64_t *moves;

	struct layout positions[UNET_LEVELS_MAX], tokens[UNET_LEVELS_MAX];
	struct layer *layers; /* owned; in call order, time first */
	uint32_t layer_count;
	struct feature *features; /* owned; features[i] is the result of layer i */
	uint32_t last_step;

	struct plan plan;
	struct arena arena;
	/* For every layer in turn: raw gradients of a convolution, the engine's scratch, sums over
	 * positions. */
	struct tensor *raw, *scratch, *image_sums, *norm_sums;
	size_t raw_elems, scratch_bytes, image_sums_elems, norm_sums_elems;
	struct tensor *time_proj, *dtime_proj; /* [batch][time_proj_stride] */
	uint32_t time_proj_stride;

	/* The call in progress. */
	uint32_t n;
	const float *x, *timesteps, *dy;
	const int32_t *labels;
	float *y, *grads;
	bool accumulate;
};

/* parameters.c: set up from the tensor table (name.weight, name.bias), copied by load. */
void conv_params_init(struct unet *unet, struct conv_params *params, const char *name,
	enum conv_kind kind, const struct channel_span *spans, uint32_t span_count, bool split,
	uint32_t out_channels);
void norm_params_init(struct unet *unet, struct norm_params *params, const char *name,
	const struct channel_span *spans, uint32_t span_count, bool silu);
void linear_params_init(struct unet *unet, struct linear_params *params, const char *name,
	uint32_t in, uint32_t out);
/* Elements before this tensor in a section. The name must exist: the table was made from config. */
uint64_t param_offset(const struct unet *unet, const char *name);

void conv_params_load(struct conv_params *params, const float *section);
void norm_params_load(struct norm_params *params, const float *section);
void linear_params_load(struct linear_params *params, const float *section);

/* Runs the call and zeroes the edges of its result. */
void conv_run(struct unet *unet, const struct conv_call *call);
/* din = (+ din when accumulate) gradient of one source from dout. */
void conv_data_gradient(struct unet *unet, const struct conv_params *params, uint32_t source,
	const struct tensor *const *dout, const struct tensor *din, bool accumulate);
/* Bias gradient from dout; leaves the sums of each image in unet->image_sums. */
void conv_bias_gradient(
	struct unet *unet, const struct conv_params *params, const struct tensor *dout);
void conv_weight_gradient(struct unet *unet, const struct conv_params *params,
	const struct tensor *const *sources, const struct tensor *const *dout);

/* Floats or bytes, alive over the whole life of the plan. */
struct tensor *persistent_array(struct unet *unet, size_t elems);
struct tensor *persistent_bytes(struct unet *unet, size_t bytes);
/* A tensor in the engine's form, alive at this step. */
struct tensor *tensor_for(
	struct unet *unet, const struct layout *layout, uint32_t channels, uint32_t step);
/* Creates the gradient when this is its first writer; returns whether to accumulate. */
bool feature_claim_grad(struct unet *unet, struct feature *feature, uint32_t step);
struct channel_span feature_span(const struct feature *feature);

/* build.c: fills layers and features, without memory for tensors. -ENOMEM. */
int unet_build_layers(struct unet *unet);
