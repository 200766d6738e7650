package workload

import "fmt"

func mapRows() []Row {
	var rows []Row
	for _, others := range []int{10, 1_000, 30_000} {
		rows = append(rows, Row{
			fmt.Sprintf("map/others=%d", others),
			fmt.Sprintf("map and unmap of one accessible page beside %d areas, untouched", others),
			1, false,
			func(run *Run, sub Subject) error { return prepareMap(run, sub, others) },
		})
	}
	return rows
}

func prepareMap(run *Run, sub Subject, others int) error {
	s, err := newSpace(run, sub)
	if err != nil {
		return err
	}
	if _, err := mapMany(s, others, PageSize); err != nil {
		return err
	}
	run.Workers = []Op{func(int) error { return mapUnmap(s, PageSize) }}
	return nil
}

// mapUnmap maps memory that merges with none of mapMany's areas.
func mapUnmap(s Space, length uint64) error {
	addr, err := s.Map(length, Read|Exec)
	if err != nil {
		return err
	}
	return s.Unmap(addr, length)
}

func protectRows() []Row {
	var rows []Row
	for _, others := range []int{10, 30_000} {
		rows = append(rows, Row{
			fmt.Sprintf("protect/others=%d", others),
			fmt.Sprintf("one page of 16 MiB touched made read-only and back: split, then merge, beside %d areas", others),
			1, false,
			func(run *Run, sub Subject) error { return prepareProtect(run, sub, others) },
		})
	}
	return rows
}

func prepareProtect(run *Run, sub Subject, others int) error {
	s, err := newSpace(run, sub)
	if err != nil {
		return err
	}
	if _, err := mapMany(s, others, PageSize); err != nil {
		return err
	}
	base, err := mapTouched(s, 16*mib, contiguous)
	if err != nil {
		return err
	}
	run.Workers = []Op{func(int) error { return protectPair(s, base+8*mib) }}
	return nil
}

func protectPair(s Space, addr uint64) error {
	if err := s.Protect(addr, PageSize, Read); err != nil {
		return err
	}
	return s.Protect(addr, PageSize, Read|Write)
}
