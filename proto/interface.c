/* The interface descriptions as texts in the program (made from the .varlink files by
 * interface.sed). */
#include "proto/interface.h"

const char proto_version[] = CKPTD_VERSION;

const char proto_interface_description[] =
#include "proto/interface_text.h"
	;

const char proto_service_description[] =
#include "proto/service_text.h"
	;
