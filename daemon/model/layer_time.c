/* The time embedding: sinusoids -> linear_1 -> SiLU -> linear_2 (+ class embedding) = e, and
 * time_proj(silu(e)) for every resnet, once. First in the call list, so last in backward, when
 * every resnet has left its gradient. */
#include "daemon/model/layers.h"

#include "base/panic.h"

#include <string.h>

#define COLUMN_BLOCK 64

static void plan(struct unet *unet, struct layer *layer, uint32_t step)
{
	struct time_layer *time = &layer->time;
	size_t rows = unet->batch, temb = unet->time_width;
	(void)step;
	time->sinusoid = persistent_array(unet, rows * unet->config.channels[0]);
	time->hidden = persistent_array(unet, rows * temb);
	time->hidden_silu = persistent_array(unet, rows * temb);
	time->embedding = persistent_array(unet, rows * temb);
	time->embedding_silu = persistent_array(unet, rows * temb);
}

static void plan_backward(struct unet *unet, struct layer *layer, uint32_t step)
{
	struct time_layer *time = &layer->time;
	size_t elems = (size_t)unet->batch * unet->time_width;
	time->dembedding = plan_array(&unet->plan, elems * sizeof(float));
	time->dhidden = plan_array(&unet->plan, elems * sizeof(float));
	plan_use(time->dembedding, step);
	plan_use(time->dhidden, step);
}

static void load(struct unet *unet, struct layer *layer, const float *section)
{
	struct time_layer *time = &layer->time;
	linear_params_load(&time->linear_1, section);
	linear_params_load(&time->linear_2, section);
	if (unet->config.class_count)
		memcpy(time->class_table->data, section + time->class_at,
			(size_t)unet->config.class_count * unet->time_width * sizeof(float));
}

static void add_classes(struct unet *unet, const struct time_layer *time)
{
	size_t temb = unet->time_width;
	for (uint32_t image = 0; image < unet->n; image++) {
		int32_t label = unet->labels[image];
		CHECK(label >= 0 && (uint32_t)label < unet->config.class_count);
		const float *row = (const float *)time->class_table->data + (size_t)label * temb;
		float *embedding = (float *)time->embedding->data + image * temb;
		for (size_t i = 0; i < temb; i++)
			embedding[i] += row[i];
	}
}

/* The projections of all resnets, each into its columns; columns between them are zero. */
static void project_all(struct unet *unet, const float *silu)
{
	memset(unet->time_proj->data, 0, unet->time_proj->bytes);
#pragma omp parallel for schedule(dynamic)
	for (uint32_t i = 0; i < unet->layer_count; i++) {
		const struct resnet_layer *resnet = &unet->layers[i].resnet;
		if (unet->layers[i].kind == &layer_resnet)
			linear_forward(unet->engine, &resnet->time_proj.linear, unet->batch, silu,
				(float *)unet->time_proj->data + resnet->time_column,
				unet->time_proj_stride);
	}
}

static void forward(struct unet *unet, struct layer *layer)
{
	struct time_layer *time = &layer->time;
	const struct unet_config *config = &unet->config;
	uint32_t rows = unet->batch, temb = unet->time_width;
	size_t elems = (size_t)rows * temb;
	timestep_embedding(unet->n, config->channels[0], config->flip_sin_to_cos,
		config->freq_shift, unet->timesteps, time->sinusoid->data);
	linear_forward(unet->engine, &time->linear_1.linear, rows, time->sinusoid->data,
		time->hidden->data, temb);
	silu_forward(elems, time->hidden->data, time->hidden_silu->data);
	linear_forward(unet->engine, &time->linear_2.linear, rows, time->hidden_silu->data,
		time->embedding->data, temb);
	if (config->class_count)
		add_classes(unet, time);
	silu_forward(elems, time->embedding->data, time->embedding_silu->data);
	project_all(unet, time->embedding_silu->data);
}

/* Parameter gradients of all projections, then the sum of their data gradients in call order. */
static void project_all_backward(struct unet *unet, const float *silu, float *dsilu)
{
	uint32_t temb = unet->time_width;
#pragma omp parallel for schedule(dynamic)
	for (uint32_t i = 0; i < unet->layer_count; i++) {
		const struct resnet_layer *resnet = &unet->layers[i].resnet;
		if (unet->layers[i].kind == &layer_resnet)
			linear_weights_gradient(unet->engine, &resnet->time_proj.linear, unet->n,
				silu, (float *)unet->dtime_proj->data + resnet->time_column,
				unet->time_proj_stride, unet->grads + resnet->time_proj.weight_at,
				unet->grads + resnet->time_proj.bias_at, unet->accumulate);
	}
#pragma omp parallel for schedule(dynamic)
	for (uint32_t first = 0; first < temb; first += COLUMN_BLOCK) {
		uint32_t columns = temb - first < COLUMN_BLOCK ? temb - first : COLUMN_BLOCK;
		bool accumulate = false;
		for (uint32_t i = 0; i < unet->layer_count; i++) {
			const struct resnet_layer *resnet = &unet->layers[i].resnet;
			if (unet->layers[i].kind != &layer_resnet)
				continue;
			linear_data_gradient(unet->engine, &resnet->time_proj.linear, unet->n,
				(float *)unet->dtime_proj->data + resnet->time_column,
				unet->time_proj_stride, first, columns, dsilu, accumulate);
			accumulate = true;
		}
	}
}

static void class_gradient(struct unet *unet, const struct time_layer *time, const float *de)
{
	size_t temb = unet->time_width;
	float *grad = unet->grads + time->class_at;
	if (!unet->accumulate)
		memset(grad, 0, unet->config.class_count * temb * sizeof(float));
	for (uint32_t image = 0; image < unet->n; image++) {
		float *row = grad + (size_t)unet->labels[image] * temb;
		for (size_t i = 0; i < temb; i++)
			row[i] += de[image * temb + i];
	}
}

static void backward(struct unet *unet, struct layer *layer)
{
	struct time_layer *time = &layer->time;
	uint32_t temb = unet->time_width;
	size_t elems = (size_t)unet->n * temb;
	float *de = time->dembedding->data, *dhidden = time->dhidden->data;
	project_all_backward(unet, time->embedding_silu->data, de);
	silu_backward(elems, time->embedding->data, de, de);
	if (unet->config.class_count)
		class_gradient(unet, time, de);
	linear_weights_gradient(unet->engine, &time->linear_2.linear, unet->n,
		time->hidden_silu->data, de, temb, unet->grads + time->linear_2.weight_at,
		unet->grads + time->linear_2.bias_at, unet->accumulate);
	linear_data_gradient(
		unet->engine, &time->linear_2.linear, unet->n, de, temb, 0, temb, dhidden, false);
	silu_backward(elems, time->hidden->data, dhidden, dhidden);
	linear_weights_gradient(unet->engine, &time->linear_1.linear, unet->n, time->sinusoid->data,
		dhidden, temb, unet->grads + time->linear_1.weight_at,
		unet->grads + time->linear_1.bias_at, unet->accumulate);
}

const struct layer_kind layer_time = {
	.name = "time",
	.plan = plan,
	.plan_backward = plan_backward,
	.load = load,
	.forward = forward,
	.backward = backward,
};
