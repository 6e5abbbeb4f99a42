// What a setuid program may do: says whether its owner's id took effect.
#include <stdio.h>
#include <unistd.h>

int main(void) { return printf("Effective uid: %d\n", geteuid()) < 0; }
