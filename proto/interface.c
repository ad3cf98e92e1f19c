/* The interface description as text in the program (interface_text.h is made from the .varlink
 * file by interface.sed). */
#include "proto/interface.h"

const char proto_version[] = CKPTD_VERSION;

const char proto_interface_description[] =
#include "proto/interface_text.h"
	;
