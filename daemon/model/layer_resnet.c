/* ResnetBlock2D: y = conv2(silu(norm2(h))) + shortcut(x), h = conv1(silu(norm1(x))) + t, where t is
 * the projected time embedding and x may be a concatenation. The 1x1 shortcut runs as further taps
 * of conv2 over the raw sources, so neither x nor its normed form is ever copied together.
 *
 * Backward computes both activations again from x and h, and h itself when the plan keeps only
 * results; a gradient takes the place of its activation. */
#include "daemon/model/layers.h"

static struct tensor *wide_tensor(
	struct unet *unet, const struct resnet_layer *resnet, uint32_t step)
{
	uint32_t width = resnet->norm1.norm.width;
	struct tensor *tensor = plan_wide_tensor(
		&unet->plan, unet->form, resnet->out->layout, width, width);
	plan_use(tensor, step);
	return tensor;
}

static void plan(struct unet *unet, struct layer *layer, uint32_t step)
{
	struct resnet_layer *resnet = &layer->resnet;
	const struct layout *layout = resnet->out->layout;
	uint32_t channels = resnet->out->value->channels;
	for (uint32_t i = 0; i < resnet->in_count; i++)
		plan_use(resnet->in[i]->value, step);
	resnet->act1 = wide_tensor(unet, resnet, step);
	resnet->hidden = tensor_for(unet, layout, channels, step);
	resnet->act2 = tensor_for(unet, layout, channels, step);
	plan_use(resnet->out->value, step);
}

static void plan_backward(struct unet *unet, struct layer *layer, uint32_t step)
{
	struct resnet_layer *resnet = &layer->resnet;
	const struct layout *layout = resnet->out->layout;
	uint32_t channels = resnet->out->value->channels;
	for (uint32_t i = 0; i < resnet->in_count; i++) {
		plan_use(resnet->in[i]->value, step);
		resnet->accumulate[i] = feature_claim_grad(unet, resnet->in[i], step);
	}
	resnet->back_hidden = unet->recompute ? tensor_for(unet, layout, channels, step)
					      : resnet->hidden;
	plan_use(resnet->back_hidden, step);
	resnet->back1 = wide_tensor(unet, resnet, step);
	resnet->back2 = tensor_for(unet, layout, channels, step);
	plan_use(resnet->out->grad, step);
}

static void load(struct unet *unet, struct layer *layer, const float *section)
{
	struct resnet_layer *resnet = &layer->resnet;
	norm_params_load(&resnet->norm1, section);
	conv_params_load(&resnet->conv1, section);
	linear_params_load(&resnet->time_proj, section);
	norm_params_load(&resnet->norm2, section);
	conv_params_load(&resnet->conv2, section);
	if (resnet->has_shortcut)
		conv_params_load(&resnet->shortcut, section);
}

/* The values of the sources, as operators take them. */
struct sources {
	const struct tensor *at[SPANS_MAX];
};

static struct sources sources_of(const struct resnet_layer *resnet)
{
	struct sources x = {{0}};
	for (uint32_t i = 0; i < resnet->in_count; i++)
		x.at[i] = resnet->in[i]->value;
	return x;
}

static void run_conv1(struct unet *unet, const struct resnet_layer *resnet,
	const struct tensor *act1, const struct tensor *hidden)
{
	struct conv_call call = {
		.n = unet->n,
		.out = hidden,
		.bias = {resnet->conv1.bias->data},
		.per_image = (const float *)unet->time_proj->data + resnet->time_column,
		.per_image_stride = unet->time_proj_stride,
	};
	conv_add_taps(&resnet->conv1.conv, 0, &act1, &call);
	conv_run(unet, &call);
}

static void forward(struct unet *unet, struct layer *layer)
{
	struct resnet_layer *resnet = &layer->resnet;
	const struct tensor *act1 = resnet->act1, *act2 = resnet->act2, *hidden = resnet->hidden;
	struct sources x = sources_of(resnet);

	group_norm_forward(&resnet->norm1.norm, unet->n, x.at, resnet->norm1.state->data, act1);
	run_conv1(unet, resnet, act1, hidden);
	group_norm_forward(&resnet->norm2.norm, unet->n, &hidden, resnet->norm2.state->data, act2);
	struct conv_call conv2 = {
		.n = unet->n,
		.out = resnet->out->value,
		.bias = {resnet->conv2.bias->data},
	};
	conv_add_taps(&resnet->conv2.conv, 0, &act2, &conv2);
	if (resnet->has_shortcut) {
		conv_add_taps(&resnet->shortcut.conv, 0, x.at, &conv2);
		conv2.bias[1] = resnet->shortcut.bias->data;
	} else {
		conv2.residual = x.at[0];
	}
	conv_run(unet, &conv2);
}

/* From dy: gradients of conv2, shortcut, norm2; leaves dh in back2. */
static void backward_second(struct unet *unet, struct resnet_layer *resnet, const struct sources *x)
{
	const struct tensor *hidden = resnet->back_hidden, *dy = resnet->out->grad;
	const struct tensor *back2 = resnet->back2;
	uint32_t channels = resnet->conv2.conv.out_channels;
	group_norm_apply(&resnet->norm2.norm, unet->n, &hidden, resnet->norm2.state->data, back2);
	conv_weight_gradient(unet, &resnet->conv2, &back2, &dy);
	conv_bias_gradient(unet, &resnet->conv2, dy);
	if (resnet->has_shortcut) {
		conv_weight_gradient(unet, &resnet->shortcut, x->at, &dy);
		sums_over_rows(unet->n, unet->image_sums->data, channels, channels,
			unet->grads + resnet->shortcut.bias_at, unet->accumulate);
	}
	conv_data_gradient(unet, &resnet->conv2, 0, &dy, back2, false);
	group_norm_backward(&resnet->norm2.norm,
		&(struct group_norm_backward){
			.n = unet->n,
			.sources = &hidden,
			.state = resnet->norm2.state->data,
			.sums = unet->norm_sums->data,
			.dout = back2,
			.dsources = {back2},
			.dweight = unet->grads + resnet->norm2.weight_at,
			.dbias = unet->grads + resnet->norm2.bias_at,
			.accumulate_params = unet->accumulate,
		});
}

/* The sums of dh over an image's positions are the gradient of its projected time embedding. */
static void backward_time(struct unet *unet, struct resnet_layer *resnet)
{
	uint32_t channels = resnet->conv1.conv.out_channels;
	const float *sums = unet->image_sums->data;
	for (uint32_t image = 0; image < unet->n; image++) {
		float *row = (float *)unet->dtime_proj->data +
			(size_t)image * unet->time_proj_stride + resnet->time_column;
		for (uint32_t c = 0; c < channels; c++)
			row[c] = sums[(size_t)image * channels + c];
	}
}

static void backward(struct unet *unet, struct layer *layer)
{
	struct resnet_layer *resnet = &layer->resnet;
	const struct tensor *dy = resnet->out->grad, *back1 = resnet->back1;
	const struct tensor *dhidden = resnet->back2;
	struct sources x = sources_of(resnet);
	group_norm_apply(&resnet->norm1.norm, unet->n, x.at, resnet->norm1.state->data, back1);
	if (unet->recompute)
		run_conv1(unet, resnet, back1, resnet->back_hidden);
	backward_second(unet, resnet, &x);

	conv_bias_gradient(unet, &resnet->conv1, dhidden);
	backward_time(unet, resnet);
	conv_weight_gradient(unet, &resnet->conv1, &back1, &dhidden);
	conv_data_gradient(unet, &resnet->conv1, 0, &dhidden, back1, false);

	struct group_norm_backward norm1 = {
		.n = unet->n,
		.sources = x.at,
		.state = resnet->norm1.state->data,
		.sums = unet->norm_sums->data,
		.dout = back1,
		.residual = resnet->has_shortcut ? NULL : dy,
		.dweight = unet->grads + resnet->norm1.weight_at,
		.dbias = unet->grads + resnet->norm1.bias_at,
		.accumulate_params = unet->accumulate,
	};
	for (uint32_t i = 0; i < resnet->in_count; i++) {
		const struct tensor *dx = resnet->in[i]->grad;
		if (resnet->has_shortcut)
			conv_data_gradient(
				unet, &resnet->shortcut, i, &dy, dx, resnet->accumulate[i]);
		norm1.dsources[i] = dx;
		norm1.accumulate[i] = resnet->has_shortcut || resnet->accumulate[i];
	}
	group_norm_backward(&resnet->norm1.norm, &norm1);
}

const struct layer_kind layer_resnet = {
	.name = "resnet",
	.plan = plan,
	.plan_backward = plan_backward,
	.load = load,
	.forward = forward,
	.backward = backward,
};
