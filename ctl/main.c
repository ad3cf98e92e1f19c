/* ckptctl's main: everything is in the library, so that tests can run it. */
#include "ctl/ctl.h"

#include <locale.h>

int main(int argc, char **argv)
{
	setlocale(LC_CTYPE, ""); /* numbers stay in C: JSON and settings have points */
	return ctl_main(argc, argv, stdout, stderr);
}
