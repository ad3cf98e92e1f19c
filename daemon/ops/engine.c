/* The engines by name. */
#include "daemon/ops/engine.h"

#include <string.h>

const struct engine *engine_named(const char *name, const char **ret_reason)
{
	*ret_reason = "";
	if (strcmp(name, "openblas") == 0)
		return engine_openblas();
#ifdef __x86_64__
	if (strcmp(name, "avx512") == 0)
		return engine_avx512(ret_reason);
	if (strcmp(name, "amx") == 0)
		return engine_amx(ret_reason);
#endif
	*ret_reason = "this build has no such engine";
	return NULL;
}
