/* Spatial self-attention: y = x + to_out(attention(q, k, v)), q, k, v linear in group_norm(x). The
 * norm writes dense tokens without pads; the result goes back to positions. */
#include "daemon/model/layers.h"

#include "base/panic.h"

static struct tensor *tokens_at(struct unet *unet, const struct attention_layer *layer,
	const struct layout *tokens, uint32_t step)
{
	struct tensor *tensor = plan_tensor(&unet->plan, tokens, layer->in->value->channels);
	plan_use(tensor, step);
	return tensor;
}

/* The dense layout of the same level. */
static const struct layout *tokens_of(const struct unet *unet, const struct feature *feature)
{
	return &unet->tokens[feature->layout - unet->positions];
}

static void plan(struct unet *unet, struct layer *layer, uint32_t step)
{
	struct attention_layer *attention = &layer->attention;
	const struct layout *tokens = tokens_of(unet, attention->in);
	plan_use(attention->in->value, step);
	plan_use(attention->out->value, step);
	attention->z = tokens_at(unet, attention, tokens, step);
	attention->q = tokens_at(unet, attention, tokens, step);
	attention->k = tokens_at(unet, attention, tokens, step);
	attention->v = tokens_at(unet, attention, tokens, step);
	attention->o = tokens_at(unet, attention, tokens, step);
	attention->projected = tokens_at(unet, attention, tokens, step);
	attention->scratch = plan_array(&unet->plan,
		unet->thread_count * attention_scratch_elems(tokens->image_stride, false));
	plan_use(attention->scratch, step);
}

static void plan_backward(struct unet *unet, struct layer *layer, uint32_t step)
{
	struct attention_layer *attention = &layer->attention;
	const struct layout *tokens = tokens_of(unet, attention->in);
	plan_use(attention->in->value, step);
	plan_use(attention->out->grad, step);
	attention->accumulate = feature_claim_grad(unet, attention->in, step);
	plan_use(attention->q, step);
	plan_use(attention->k, step);
	plan_use(attention->v, step);
	plan_use(attention->o, step);
	attention->back_z = tokens_at(unet, attention, tokens, step);
	attention->dprojected = tokens_at(unet, attention, tokens, step);
	attention->back_do = tokens_at(unet, attention, tokens, step);
	attention->dq = tokens_at(unet, attention, tokens, step);
	attention->dk = tokens_at(unet, attention, tokens, step);
	attention->dv = tokens_at(unet, attention, tokens, step);
	attention->dz = tokens_at(unet, attention, tokens, step);
	attention->back_scratch = plan_array(&unet->plan,
		unet->thread_count * attention_scratch_elems(tokens->image_stride, true));
	plan_use(attention->back_scratch, step);
}

static void load(struct unet *unet, struct layer *layer, const float *section)
{
	struct attention_layer *attention = &layer->attention;
	norm_params_load(&attention->norm, section);
	conv_params_load(unet, &attention->to_q, section);
	conv_params_load(unet, &attention->to_k, section);
	conv_params_load(unet, &attention->to_v, section);
	conv_params_load(unet, &attention->to_out, section);
}

/* out = in W^T + b on tokens. */
static void project(struct unet *unet, const struct conv_params *params,
	const struct layout *tokens, const struct tensor *in, struct tensor *out)
{
	struct conv_call call = {
		.layout = tokens,
		.n = unet->n,
		.out = out->data,
		.out_width = out->width,
		.bias = {params->bias->data},
	};
	conv_add_taps(&params->conv, tokens, 0, (const float *[]){in->data}, &call);
	conv_run(unet, &call);
}

static void forward(struct unet *unet, struct layer *layer)
{
	struct attention_layer *attention = &layer->attention;
	const struct layout *positions = attention->in->layout;
	const struct layout *tokens = tokens_of(unet, attention->in);
	const float *x = attention->in->value->data;
	uint32_t n = unet->n;
	group_norm_forward(&attention->norm.norm, positions, n, &x, attention->norm.state->data,
		tokens, attention->z->data);
	project(unet, &attention->to_q, tokens, attention->z, attention->q);
	project(unet, &attention->to_k, tokens, attention->z, attention->k);
	project(unet, &attention->to_v, tokens, attention->z, attention->v);
	attention->attention.scratch = attention->scratch->data;
	attention_forward(&attention->attention, n, attention->q->data, attention->k->data,
		attention->v->data, attention->o->data);
	layout_zero_edges(tokens, n, attention->o->data, attention->o->width);
	project(unet, &attention->to_out, tokens, attention->o, attention->projected);
	layout_scatter_tokens(positions, tokens, n, attention->projected->data, x,
		attention->out->value->data, attention->out->value->width);
}

/* Weight and bias gradients of one projection. */
static void project_gradients(struct unet *unet, const struct conv_params *params,
	const struct layout *tokens, const struct tensor *in, const struct tensor *dout)
{
	conv_weight_gradient(
		unet, params, tokens, (const float *[]){in->data}, (const float *[]){dout->data});
	conv_bias_gradient(unet, params, tokens, dout->data);
}

/* From dy to dq, dk, dv, with the gradients of to_out. */
static void backward_heads(
	struct unet *unet, struct attention_layer *attention, const struct layout *tokens)
{
	uint32_t n = unet->n, width = attention->o->width;
	layout_gather_tokens(attention->in->layout, tokens, n, attention->out->grad->data,
		attention->dprojected->data, width);
	project_gradients(unet, &attention->to_out, tokens, attention->o, attention->dprojected);
	conv_data_gradient(unet, &attention->to_out, tokens, 0,
		(const float *[]){attention->dprojected->data}, attention->back_do->data, width,
		false);
	attention->attention.scratch = attention->back_scratch->data;
	attention_backward(&attention->attention, n, attention->q->data, attention->k->data,
		attention->v->data, attention->back_do->data, attention->dq->data,
		attention->dk->data, attention->dv->data);
	layout_zero_edges(tokens, n, attention->dq->data, width);
	layout_zero_edges(tokens, n, attention->dk->data, width);
	layout_zero_edges(tokens, n, attention->dv->data, width);
}

static void backward(struct unet *unet, struct layer *layer)
{
	struct attention_layer *attention = &layer->attention;
	const struct layout *positions = attention->in->layout;
	const struct layout *tokens = tokens_of(unet, attention->in);
	const float *x = attention->in->value->data;
	uint32_t n = unet->n;
	backward_heads(unet, attention, tokens);

	group_norm_apply(&attention->norm.norm, positions, n, &x, attention->norm.state->data,
		tokens, attention->back_z->data);
	project_gradients(unet, &attention->to_q, tokens, attention->back_z, attention->dq);
	project_gradients(unet, &attention->to_k, tokens, attention->back_z, attention->dk);
	project_gradients(unet, &attention->to_v, tokens, attention->back_z, attention->dv);

	struct conv_call dz = {
		.layout = tokens,
		.n = n,
		.out = attention->dz->data,
		.out_width = attention->dz->width,
	};
	conv_add_data_taps(
		&attention->to_q.conv, tokens, 0, (const float *[]){attention->dq->data}, &dz);
	conv_add_data_taps(
		&attention->to_k.conv, tokens, 0, (const float *[]){attention->dk->data}, &dz);
	conv_add_data_taps(
		&attention->to_v.conv, tokens, 0, (const float *[]){attention->dv->data}, &dz);
	conv_run(unet, &dz);
	group_norm_backward(&attention->norm.norm,
		&(struct group_norm_backward){
			.layout = positions,
			.out_layout = tokens,
			.n = n,
			.sources = &x,
			.state = attention->norm.state->data,
			.sums = unet->norm_sums->data,
			.dout = attention->dz->data,
			.dsources = {attention->in->grad->data},
			.accumulate = {attention->accumulate},
			.residual = attention->out->grad->data,
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
