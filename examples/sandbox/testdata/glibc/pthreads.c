// A static glibc program: what pthread_create, join, mutexes, condition
// variables, barriers, robust mutexes and cancellation need of a kernel.
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define WANT(cond) do { if (!(cond)) { printf("failed: %s in line %d (errno %d)\n", #cond, __LINE__, errno); fflush(stdout); _exit(1); } } while (0)

enum { threads = 8, rounds = 400 };

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t full = PTHREAD_COND_INITIALIZER, empty = PTHREAD_COND_INITIALIZER;
static long counter, queue[4], queued, produced, consumed;

static void *adder(void *arg) {
	for (int i = 0; i < rounds; i++) {
		pthread_mutex_lock(&mutex);
		counter += (long)arg;
		pthread_mutex_unlock(&mutex);
	}
	return arg;
}

static void *producer(void *arg) {
	for (long i = 1; i <= rounds; i++) {
		pthread_mutex_lock(&mutex);
		while (queued == 4) pthread_cond_wait(&empty, &mutex);
		queue[queued++] = i;
		produced += i;
		pthread_cond_signal(&full);
		pthread_mutex_unlock(&mutex);
	}
	return arg;
}

static void *consumer(void *arg) {
	for (int i = 0; i < rounds; i++) {
		pthread_mutex_lock(&mutex);
		while (queued == 0) pthread_cond_wait(&full, &mutex);
		consumed += queue[--queued];
		pthread_cond_broadcast(&empty);
		pthread_mutex_unlock(&mutex);
	}
	return arg;
}

static void run(int n, void *(*even)(void *), void *(*odd)(void *)) {
	pthread_t t[64];
	for (long i = 0; i < n; i++) WANT(pthread_create(&t[i], NULL, i % 2 ? odd : even, (void *)i) == 0);
	for (long i = 0; i < n; i++) {
		void *got;
		WANT(pthread_join(t[i], &got) == 0 && got == (void *)i);
	}
}

static pthread_mutex_t robust;
static void *dies(void *arg) { WANT(pthread_mutex_lock(&robust) == 0); return arg; }

static void robustness(int protocol) {
	pthread_mutexattr_t attr;
	pthread_mutexattr_init(&attr);
	WANT(pthread_mutexattr_setprotocol(&attr, protocol) == 0);
	pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST);
	for (int i = 0; i < 20; i++) {
		pthread_t t;
		WANT(pthread_mutex_init(&robust, &attr) == 0);
		WANT(pthread_create(&t, NULL, dies, NULL) == 0);
		if (i % 2) pthread_join(t, NULL);
		int err = pthread_mutex_lock(&robust);
		if (err == 0) { // we were first
			pthread_mutex_unlock(&robust);
			pthread_join(t, NULL);
			continue;
		}
		WANT(err == EOWNERDEAD && pthread_mutex_consistent(&robust) == 0 && pthread_mutex_unlock(&robust) == 0);
		if (i % 2 == 0) pthread_join(t, NULL);
	}
}

// Mutexes with priority inheritance: contended, with a condition variable and
// with a timeout.
static void inheritance(void) {
	pthread_mutexattr_t attr;
	pthread_mutexattr_init(&attr);
	pthread_mutexattr_setprotocol(&attr, PTHREAD_PRIO_INHERIT);
	pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_ERRORCHECK);
	WANT(pthread_mutex_init(&mutex, &attr) == 0);
	counter = 0;
	run(threads, adder, adder);
	WANT(counter == rounds * (threads * (threads - 1) / 2));
	produced = consumed = queued = 0;
	run(threads, producer, consumer);
	WANT(produced == consumed && queued == 0);
	WANT(pthread_mutex_lock(&mutex) == 0 && pthread_mutex_lock(&mutex) == EDEADLK && pthread_mutex_unlock(&mutex) == 0);
	WANT(pthread_mutex_unlock(&mutex) == EPERM);
	pthread_mutex_t plain = PTHREAD_MUTEX_INITIALIZER;
	memcpy(&mutex, &plain, sizeof plain);
}

static pthread_barrier_t barrier;
static __thread long mine;
static void *meets(void *arg) {
	for (int i = 0; i < 50; i++) {
		mine = (long)arg + i;
		pthread_barrier_wait(&barrier);
		WANT(mine == (long)arg + i);
	}
	return arg;
}

// Threads that fork, wait and exec while others do the same.
static void *forks(void *arg) {
	for (int i = 0; i < 5; i++) {
		int status, fd[2];
		char c = 0;
		WANT(pipe(fd) == 0);
		pid_t child = fork();
		WANT(child >= 0);
		if (child == 0) {
			char code[8];
			snprintf(code, sizeof code, "%ld", (long)arg);
			dup2(fd[1], 5);
			execl("/proc/self/exe", "pthreads", "child", code, NULL);
			_exit(99);
		}
		close(fd[1]);
		WANT(read(fd[0], &c, 1) == 1 && c == 'c');
		close(fd[0]);
		WANT(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == (int)(long)arg);
	}
	return arg;
}

// Processes share a mutex and a semaphore in shared memory.
static void shared(void) {
	struct { pthread_mutex_t m; sem_t s; long n; } *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pthread_mutexattr_t attr;
	WANT(p != MAP_FAILED);
	pthread_mutexattr_init(&attr);
	pthread_mutexattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
	pthread_mutex_init(&p->m, &attr);
	sem_init(&p->s, 1, 0);
	for (int i = 0; i < 3; i++) {
		if (fork() == 0) {
			for (int j = 0; j < 200; j++) {
				pthread_mutex_lock(&p->m);
				p->n++;
				pthread_mutex_unlock(&p->m);
			}
			sem_post(&p->s);
			_exit(0);
		}
	}
	for (int i = 0; i < 3; i++) while (sem_wait(&p->s) != 0) WANT(errno == EINTR);
	for (int i = 0; i < 3; i++) WANT(wait(NULL) > 0);
	WANT(p->n == 600);
	munmap(p, 4096);
}

static void *cancelled(void *arg) { for (;;) pause(); return arg; }

static void timeouts(void) {
	struct timespec at;
	clock_gettime(CLOCK_REALTIME, &at);
	at.tv_nsec += 20000000;
	if (at.tv_nsec >= 1000000000) at.tv_sec++, at.tv_nsec -= 1000000000;
	pthread_mutex_lock(&mutex);
	WANT(pthread_cond_timedwait(&full, &mutex, &at) == ETIMEDOUT);
	pthread_mutex_unlock(&mutex);
	pthread_t t;
	void *got;
	WANT(pthread_create(&t, NULL, cancelled, NULL) == 0);
	WANT(pthread_cancel(t) == 0 && pthread_join(t, &got) == 0 && got == PTHREAD_CANCELED);
}

int main(int argc, char **argv) {
	if (argc == 3) {
		(void)!write(5, "c", 1);
		return atoi(argv[2]);
	}
	run(threads, adder, adder);
	WANT(counter == rounds * (threads * (threads - 1) / 2));
	run(threads, producer, consumer);
	WANT(produced == consumed && queued == 0);
	pthread_barrier_init(&barrier, NULL, threads);
	run(threads, meets, meets);
	robustness(PTHREAD_PRIO_NONE);
	robustness(PTHREAD_PRIO_INHERIT);
	inheritance();
	timeouts();
	for (int i = 0; i < 30; i++) run(16, adder, adder);
	shared();
	run(6, forks, forks);
	puts("pthreads are right");
	return 0;
}
