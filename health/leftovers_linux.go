package health

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// runEnv names the run of an exec probe in the environment of all that it starts.
const runEnv = "MERIDIAN_RUN="

// adopt makes this process the parent of what programs leave behind, also of what has left
// their process group and session (prctl(2), PR_SET_CHILD_SUBREAPER).
var adopt = sync.OnceFunc(func() { _ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) })

// bury kills what the program of a run, which has ended and led the process group, left
// behind, and takes its exit. What it kills may have children, who are then ours.
func bury(run string, group int) {
	killed := make(map[int]bool)
	for none, tries := 0, 0; none < 2 && tries < 1000; tries++ { // a process that is killed ends within some milliseconds
		none++ // twice, since the list may miss one while another ends (proc(5))
		for _, pid := range children() {
			if killed[pid] || leftBehind(pid, run, group) {
				none, killed[pid] = 0, true
				_ = unix.Kill(pid, unix.SIGKILL)
				_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
			}
		}
		time.Sleep(time.Millisecond)
	}
}

// children returns the processes whose parent this one is.
func children() (pids []int) {
	threads, _ := filepath.Glob("/proc/self/task/*/children")
	for _, name := range threads {
		list, _ := os.ReadFile(name)
		for f := range strings.FieldsSeq(string(list)) {
			if pid, err := strconv.Atoi(f); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// leftBehind reports whether a child of ours is of that run: of its process group, or with its
// name in the environment. One in a session that is not ours is an orphan, since we start no
// sessions: of that run, unless its environment says another.
func leftBehind(pid int, run string, group int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	var state string
	var parent, pgrp, session int
	_, after, _ := strings.Cut(string(stat[bytes.LastIndexByte(stat, ')')+1:]), " ") // the name may hold anything
	if _, err := fmt.Sscan(after, &state, &parent, &pgrp, &session); err != nil {
		return false
	}
	ours, err := unix.Getsid(0)
	switch {
	case err != nil || parent != os.Getpid():
		return false
	case pgrp == group:
		return true
	}
	env, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid)) // nothing of one that ended, or emptied it
	return bytes.Contains(env, []byte(runEnv+run+"\x00")) || session != ours && !bytes.Contains(env, []byte(runEnv))
}
