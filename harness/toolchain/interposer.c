/* libQnnHtp.so as ExecuTorch sees it: Qualcomm's own, with one entry of its interface table wrapped.
 *
 * ExecuTorch 1.5.1 is built against QNN headers (QAIRT 2.37) in which the union of
 * QnnHtpDevice_CustomConfig_t lies at offset 4. In several later generations a member of that union is a
 * pointer, so the union moved to offset 8, the library reads the SoC model as 0 and QnnDevice_create answers
 * 14001 (invalid configuration). We call deviceCreate as given; only if it answers 14001 and a custom
 * configuration was passed do we call it again with copies whose union is moved to offset 8. So a library
 * that accepts the old layout is never touched.
 *
 * Only the documented C interface (QnnInterface_getProviders) is used. Built by harness/toolchain/interposer.py:
 *   REAL_LIBRARY is the path of Qualcomm's library.
 * Linked with -soname libQnnHtp.so and -z nodelete: ExecuTorch opens the library by path, closes it, and opens
 * it again by name, and must get this one both times.
 */
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#define INVALID_CONFIG 14001u    /* QNN_DEVICE_ERROR_INVALID_CONFIG */
#define DEVICE_OPTION_CUSTOM 0u  /* QNN_DEVICE_CONFIG_OPTION_CUSTOM */
#define DEVICE_CREATE_ENTRY 40   /* of the V2 function table */
#define MAX_PROVIDERS 8
#define MAX_CONFIGS 16
#define MAX_PROVIDER_BYTES 2048  /* 40 bytes of header and up to 251 entries */
#define MIN_PROVIDER_BYTES (40 + 8 * (DEVICE_CREATE_ENTRY + 1))

typedef uint64_t (*DeviceCreate)(void *logger, const void **config, void *device);
typedef uint64_t (*GetProviders)(const void ***providers, uint32_t *count);

/* QnnInterface_t: the function table begins behind this header. */
typedef struct {
  uint32_t backend_id;
  const char *name;
  uint32_t version[6];
  void *entries[];
} Provider;

/* QnnDevice_Config_t */
typedef struct {
  uint32_t option;
  void *custom;
} DeviceConfig;

/* QnnHtpDevice_CustomConfig_t in the layout that needs a pointer-aligned union. */
typedef struct {
  uint32_t option;
  uint32_t padding;
  uint8_t body[16];
} MovedCustomConfig;

static pthread_once_t once = PTHREAD_ONCE_INIT;
static const void *wrapped[MAX_PROVIDERS];
static uint32_t wrapped_count;
static uint64_t load_status = 1;
static DeviceCreate real_device_create;

static uint64_t device_create(void *logger, const void **config, void *device) {
  uint64_t status = real_device_create(logger, config, device);
  if ((status & 0xffff) != INVALID_CONFIG || config == NULL) return status;

  MovedCustomConfig moved[MAX_CONFIGS];
  DeviceConfig copies[MAX_CONFIGS];
  const void *list[MAX_CONFIGS + 1];
  int custom = 0, n = 0;
  for (; config[n] != NULL; n++) {
    if (n == MAX_CONFIGS) return status;
    const DeviceConfig *given = config[n];
    list[n] = given;
    if (given->option != DEVICE_OPTION_CUSTOM || given->custom == NULL) continue;
    memset(&moved[n], 0, sizeof moved[n]);
    memcpy(&moved[n].option, given->custom, 4);
    /* 8 bytes: the widest member of the old, 4-byte aligned union. */
    memcpy(moved[n].body, (const uint8_t *)given->custom + 4, 8);
    copies[n] = *given;
    copies[n].custom = &moved[n];
    list[n] = &copies[n];
    custom = 1;
  }
  list[n] = NULL;
  return custom ? real_device_create(logger, list, device) : status;
}

/* Copies up to `size` bytes from `source`, as far as they can be read, and says how many.
 * How long the table is depends on the library's version, and it may lie on the heap: the kernel is asked to
 * read it, through a pipe, and stops at an unmapped page instead of crashing us. */
static size_t copy_readable(void *target, const void *source, size_t size) {
  int ends[2];
  if (pipe(ends) != 0) return 0;
  ssize_t written = write(ends[1], source, size);
  ssize_t got = written > 0 ? read(ends[0], target, (size_t)written) : 0;
  close(ends[0]);
  close(ends[1]);
  return got > 0 ? (size_t)got : 0;
}

static void load(void) {
  void *library = dlopen(REAL_LIBRARY, RTLD_NOW | RTLD_LOCAL);
  if (library == NULL) {
    fprintf(stderr, "htpfarm: the real libQnnHtp.so does not load: %s\n", dlerror());
    return;
  }
  GetProviders get = (GetProviders)dlsym(library, "QnnInterface_getProviders");
  const void **providers = NULL;
  if (get == NULL) {
    fprintf(stderr, "htpfarm: %s has no QnnInterface_getProviders\n", REAL_LIBRARY);
    return;
  }
  load_status = get(&providers, &wrapped_count);
  if (load_status != 0) return;
  if (wrapped_count > MAX_PROVIDERS) wrapped_count = MAX_PROVIDERS;
  for (uint32_t i = 0; i < wrapped_count; i++) {
    wrapped[i] = providers[i];
    Provider *copy = calloc(1, MAX_PROVIDER_BYTES);
    if (copy == NULL || copy_readable(copy, providers[i], MAX_PROVIDER_BYTES) < MIN_PROVIDER_BYTES) continue;
    real_device_create = (DeviceCreate)copy->entries[DEVICE_CREATE_ENTRY];
    if (real_device_create != NULL) copy->entries[DEVICE_CREATE_ENTRY] = (void *)device_create;
    wrapped[i] = copy;
  }
}

__attribute__((visibility("default"))) uint64_t QnnInterface_getProviders(const void ***providers,
                                                                          uint32_t *count) {
  pthread_once(&once, load);
  *providers = wrapped;
  *count = wrapped_count;
  return load_status;
}
