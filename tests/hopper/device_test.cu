// The room's tests, for a GPU.
#include "room_test.cpp"
