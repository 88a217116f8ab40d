from metric_cases.case import Case

CASES: dict[str, Case] = {}
