/* Spatial self-attention: y = x + to_out(attention(q, k, v)), q, k, v linear in group_norm(x). The
 * norm writes dense tokens without pads; the result goes back to positions. Backward takes q, k, v
 * and o from forward, or computes them again when the plan keeps only results. */
#include "daemon/model/layers.h"

#include "base/panic.h"

/* The dense layout of the same level. */
static const struct layout *tokens_of(const struct unet *unet, const struct feature *feature)
{
	return &unet->tokens[feature->layout - unet->positions];
}

static struct tensor *tokens_at(
	struct unet *unet, const struct attention_layer *attention, uint32_t step)
{
	return tensor_for(
		unet, tokens_of(unet, attention->in), attention->in->value->channels, step);
}

static struct heads plan_heads(
	struct unet *unet, const struct attention_layer *attention, uint32_t step)
{
	return (struct heads){
		.z = tokens_at(unet, attention, step),
		.q = tokens_at(unet, attention, step),
		.k = tokens_at(unet, attention, step),
		.v = tokens_at(unet, attention, step),
		.o = tokens_at(unet, attention, step),
	};
}

static void plan(struct unet *unet, struct layer *layer, uint32_t step)
{
	struct attention_layer *attention = &layer->attention;
	plan_use(attention->in->value, step);
	plan_use(attention->out->value, step);
	attention->heads = plan_heads(unet, attention, step);
	attention->projected = tokens_at(unet, attention, step);
	attention->scratch = plan_array(
		&unet->plan, attention_scratch_bytes(&attention->attention, false));
	plan_use(attention->scratch, step);
}

static void plan_backward(struct unet *unet, struct layer *layer, uint32_t step)
{
	struct attention_layer *attention = &layer->attention;
	plan_use(attention->in->value, step);
	plan_use(attention->out->grad, step);
	attention->accumulate = feature_claim_grad(unet, attention->in, step);
	if (unet->recompute) {
		attention->back = plan_heads(unet, attention, step);
		plan_use(attention->scratch, step);
	} else {
		attention->back = attention->heads;
		attention->back.z = tokens_at(unet, attention, step);
		plan_use(attention->back.q, step);
		plan_use(attention->back.k, step);
		plan_use(attention->back.v, step);
		plan_use(attention->back.o, step);
	}
	attention->dprojected = tokens_at(unet, attention, step);
	attention->dout = tokens_at(unet, attention, step);
	attention->dq = tokens_at(unet, attention, step);
	attention->dk = tokens_at(unet, attention, step);
	attention->dv = tokens_at(unet, attention, step);
	attention->dz = tokens_at(unet, attention, step);
	attention->back_scratch = plan_array(
		&unet->plan, attention_scratch_bytes(&attention->attention, true));
	plan_use(attention->back_scratch, step);
}

static void load(struct unet *unet, struct layer *layer, const float *section)
{
	struct attention_layer *attention = &layer->attention;
	norm_params_load(&attention->norm, section);
	conv_params_load(&attention->to_q, section);
	conv_params_load(&attention->to_k, section);
	conv_params_load(&attention->to_v, section);
	conv_params_load(&attention->to_out, section);
}

/* out = in W^T + b on tokens. */
static void project(struct unet *unet, const struct conv_params *params, const struct tensor *in,
	const struct tensor *out)
{
	struct conv_call call = {.n = unet->n, .out = out, .bias = {params->bias->data}};
	conv_add_taps(&params->conv, 0, &in, &call);
	conv_run(unet, &call);
}

/* q, k, v and o from z. */
static void run_heads(
	struct unet *unet, struct attention_layer *attention, const struct heads *heads)
{
	project(unet, &attention->to_q, heads->z, heads->q);
	project(unet, &attention->to_k, heads->z, heads->k);
	project(unet, &attention->to_v, heads->z, heads->v);
	attention->attention.scratch = attention->scratch->data;
	attention_forward(&attention->attention, unet->n, heads->q, heads->k, heads->v, heads->o);
}

static void forward(struct unet *unet, struct layer *layer)
{
	struct attention_layer *attention = &layer->attention;
	const struct tensor *x = attention->in->value;
	group_norm_forward(&attention->norm.norm, unet->n, &x, attention->norm.state->data,
		attention->heads.z);
	run_heads(unet, attention, &attention->heads);
	project(unet, &attention->to_out, attention->heads.o, attention->projected);
	tensor_scatter_tokens(unet->n, attention->projected, x, attention->out->value);
}

/* Weight and bias gradients of one projection. */
static void project_gradients(struct unet *unet, const struct conv_params *params,
	const struct tensor *in, const struct tensor *dout)
{
	conv_weight_gradient(unet, params, &in, &dout);
	conv_bias_gradient(unet, params, dout);
}

/* From dy to dq, dk, dv, with the gradients of to_out. */
static void backward_heads(struct unet *unet, struct attention_layer *attention)
{
	const struct heads *heads = &attention->back;
	const struct tensor *dprojected = attention->dprojected;
	tensor_gather_tokens(unet->n, attention->out->grad, dprojected);
	project_gradients(unet, &attention->to_out, heads->o, dprojected);
	conv_data_gradient(unet, &attention->to_out, 0, &dprojected, attention->dout, false);
	attention->attention.scratch = attention->back_scratch->data;
	attention_backward(&attention->attention, unet->n,
		(const struct tensor *[]){heads->q, heads->k, heads->v}, attention->dout,
		(const struct tensor *[]){attention->dq, attention->dk, attention->dv});
}

static void backward(struct unet *unet, struct layer *layer)
{
	struct attention_layer *attention = &layer->attention;
	const struct heads *heads = &attention->back;
	const struct tensor *x = attention->in->value;
	const struct tensor *dqkv[] = {attention->dq, attention->dk, attention->dv};
	const struct conv_params *projections[] = {
		&attention->to_q, &attention->to_k, &attention->to_v};
	group_norm_apply(&attention->norm.norm, unet->n, &x, attention->norm.state->data, heads->z);
	if (unet->recompute)
		run_heads(unet, attention, heads);
	backward_heads(unet, attention);

	struct conv_call dz = {.n = unet->n, .out = attention->dz};
	for (int i = 0; i < 3; i++) {
		project_gradients(unet, projections[i], heads->z, dqkv[i]);
		conv_add_data_taps(&projections[i]->conv, 0, &dqkv[i], &dz);
	}
	conv_run(unet, &dz);
	group_norm_backward(&attention->norm.norm,
		&(struct group_norm_backward){
			.n = unet->n,
			.sources = &x,
			.state = attention->norm.state->data,
			.sums = unet->norm_sums->data,
			.dout = attention->dz,
			.dsources = {attention->in->grad},
			.accumulate = {attention->accumulate},
			.residual = attention->out->grad,
			.dweight = unet->grads + attention->norm.weight_at,
			.dbias = unet->grads + attention->norm.bias_at,
			.accumulate_params = unet->accumulate,
		});
}

const struct layer_kind layer_attention = {
	.name = "attention",
	.plan = plan,
	.plan_backward = plan_backward,
	.load = load,
	.forward = forward,
	.backward = backward,
};
